"""A predictor for tests that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rescoldo.engine.types import Sampling
from rescoldo.models.predictor import Prediction
from rescoldo.role import get_role

ROLE = get_role("ba")


class Fake:
    """Answers with each record's own target, changed by `edit`; after `stop_after` rows comes a KeyboardInterrupt."""

    name = "fake"

    def __init__(
        self, edit: Callable[[int, Prediction], Prediction] = lambda i, p: p, stop_after: int = 1 << 30
    ) -> None:
        self.edit, self.stop_after = edit, stop_after
        self.asked: list[str] = []

    def fingerprint(self) -> str:
        return "fake 1"

    def prompt(self, record: dict[str, Any]) -> str:
        return ROLE.messages(record)[0]["content"]

    def describe(self) -> dict[str, Any]:
        return {"spec": "fake"}

    def predict(
        self, records: Sequence[dict[str, Any]], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        for count, index in enumerate(reversed(range(len(records)))):  # rows end in any order
            if count == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(records[index]["concept"])
            if on_progress:
                on_progress(10 * count)
            yield index, self.edit(index, Prediction(ROLE.target(records[index]), True, 10, 0.5))
