"""What answers concepts: anything that turns records into predictions, and what a prediction is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rescoldo.engine.types import Sampling


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        text: as the model wrote it.
        ended: the model stopped by itself, it was not cut off.
        tokens: how many it wrote, the end not counted.
        seconds: from the start of its batch to its end.
        error: why there is no answer (a server that failed); "" where there is one.
        fields: the answer as fields where a program returns them so; None: `text` is scored.
    """

    text: str
    ended: bool
    tokens: int
    seconds: float
    error: str = ""
    fields: dict[str, Any] | None = None


class Predictor(Protocol):
    """A model as the evaluation sees it."""

    name: str

    def fingerprint(self) -> str:
        """Changes when the model would answer differently: part of the key under which answers are kept."""

    def prompt(self, record: dict[str, Any]) -> str:
        """What the model is given for a record, as text: also part of that key."""

    def predict(
        self, records: Sequence[dict[str, Any]], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        """Answer records; yields (index, prediction) as each ends. `on_progress` is told the tokens written so far."""
