"""A chat model that answers by a function, and tells how it was asked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rescoldo.engine.types import Sampling
from rescoldo.models.predictor import Messages, Prediction


class FakeChat:
    """`calls`: for each call, the conversations that it had. An answer that is an exception is raised."""

    def __init__(
        self, answer: Callable[[Messages], str | Exception], batches: bool = True, seconds: float = 0.0
    ) -> None:
        self.answer, self.batches, self.seconds = answer, batches, seconds
        self.calls: list[list[Messages]] = []
        self.samplings: list[Sampling] = []

    def fingerprint(self) -> str:
        return "fake chat"

    def render(self, messages: Messages) -> str:
        return json.dumps(messages)

    def describe(self) -> dict[str, Any]:
        return {"spec": "fake chat"}

    def complete(
        self, conversations: Sequence[Messages], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        self.calls.append(list(conversations))
        self.samplings.append(sampling)
        time.sleep(self.seconds)
        for index, messages in enumerate(conversations):
            found = self.answer(messages)
            if isinstance(found, Exception):
                raise found
            if on_progress:
                on_progress(index)
            error = found.removeprefix("error: ") if found.startswith("error: ") else ""
            yield index, Prediction("" if error else found, not found.endswith("…"), 3, 0.1, error)

    @property
    def asked(self) -> int:
        """Conversations in all."""
        return sum(map(len, self.calls))
