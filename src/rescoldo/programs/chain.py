"""A program of several steps, rebuilt from its state. Imported only if dspy is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy


class Chain(dspy.Module):  # type: ignore[misc]
    """Steps that run one after another; each takes its inputs from the question and the answers of earlier steps.

    Args:
        steps: in the order of running.
        outputs: the fields of the final answer.
    """

    def __init__(self, steps: Sequence[Any], outputs: Sequence[str]) -> None:
        super().__init__()
        self.steps, self.outputs = list(steps), tuple(outputs)

    def forward(self, **asked: Any) -> Any:
        """The answer's fields, as a dspy.Prediction."""
        known = dict(asked)
        for step in self.steps:
            known |= step(**{name: known[name] for name in step.signature.input_fields}).toDict()
        return dspy.Prediction(**{name: known[name] for name in self.outputs})
