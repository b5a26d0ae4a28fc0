"""A chat model for tests, and drafts that it has written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rescoldo.draft.drafting import Asker, Drafted, draft
from rescoldo.draft.sources import Asked, read_inputs
from rescoldo.models.cache import PredictionCache
from rescoldo.models.predictor import Prediction
from rescoldo.role import get_role

GENERIC, BA = get_role("generic"), get_role("ba")


class FakeChat:
    """Answers by a function of the last message; after `stop_after` answers comes a KeyboardInterrupt."""

    batches = True

    def __init__(self, answer: Callable[[str], str], stop_after: int = 1 << 30, held: Any = None) -> None:
        self.answer, self.stop_after, self.held = answer, stop_after, held
        self.asked: list[str] = []

    def fingerprint(self) -> str:
        return f"fake {self.held.digest if self.held else ''}"

    def render(self, messages: Any) -> str:
        return json.dumps(messages)

    def describe(self) -> dict[str, Any]:
        return {"spec": "fake"}

    def constrained(self, grammar: Any) -> FakeChat:
        other = FakeChat(self.answer, self.stop_after, grammar)
        other.asked = self.asked
        return other

    def complete(
        self, conversations: Sequence[Any], sampling: Any, on_progress: Any = None
    ) -> Iterator[tuple[int, Prediction]]:
        for index, messages in enumerate(conversations):
            if len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            text = messages[-1]["content"]
            self.asked.append(text)
            said = self.answer(text)
            error = said.removeprefix("error: ") if said.startswith("error: ") else ""
            yield index, Prediction("" if error else said, not said.endswith("…"), 5, 0.1, error)


def drafted(
    asked: Sequence[Asked], role: Any = GENERIC, answer: Callable[[str], str] = lambda text: f"about {text}",
    cache: Path | None = None, chat: FakeChat | None = None, **more: Any,
) -> Drafted:  # fmt: skip
    chat = chat or FakeChat(answer)
    asker = Asker(chat, PredictionCache(cache), lambda *told: None)
    return draft(asked, role, asker, chat, role.sampling, spec="openai:m@http://x/v1", **more)


def asked(tmp_path: Path, *texts: str, role: Any = GENERIC) -> list[Asked]:
    (tmp_path / "inputs.txt").write_text("\n".join(texts), encoding="utf-8")
    return read_inputs(tmp_path / "inputs.txt", role)
