"""Judges that are not models: their accuracy and their biases are known."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rescoldo.engine.types import Sampling
from rescoldo.models.predictor import Messages, Prediction

_INPUT = re.compile(r"<input (\w{8})>\n(.*?)\n</input \1>", re.DOTALL)
_SHOWN = re.compile(r"<answer ([12]) (\w{8})>\n(.*?)\n</answer \1 \2>", re.DOTALL)


def shown(messages: Messages) -> tuple[str, str]:
    """The two answers in a judge's prompt."""
    (_, _, first), (_, _, second) = _SHOWN.findall(messages[-1]["content"])
    return first, second


def question(messages: Messages) -> str:
    """The input in a judge's prompt."""
    found = _INPUT.search(messages[-1]["content"])
    assert found
    return found[2]


class Simulated:
    """Says which answer is better by `better`, of the input and two answers (None: equally good).

    Args:
        accuracy: chance that it sees a pair rightly; else it says the opposite, in both orders.
        first: chance that it names what stands first, whatever it is; the same in both orders.
        reply: its words for a choice.
    """

    batches = False

    def __init__(
        self, better: Callable[[str, str, str], bool | None], *, accuracy: float = 1.0, first: float = 0.0,
        seed: int = 0, reply: Callable[[int], str] = str,
    ) -> None:  # fmt: skip
        self.better, self.accuracy, self.first, self.seed, self.reply = better, accuracy, first, seed, reply
        self.asked = 0

    def fingerprint(self) -> str:
        return f"simulated {self.accuracy} {self.first} {self.seed}"

    def render(self, messages: Messages) -> str:
        return messages[-1]["content"]

    def describe(self) -> dict[str, Any]:
        return {"spec": "simulated"}

    def complete(
        self, conversations: Sequence[Messages], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        for index in reversed(range(len(conversations))):
            self.asked += 1
            one, other = shown(conversations[index])
            yield index, Prediction(self.reply(self._choice(question(conversations[index]), one, other)), True, 1, 0.0)

    def _choice(self, asked: str, one: str, other: str) -> int:
        same_for_both_orders = hashlib.sha256("\0".join([str(self.seed), *sorted((one, other))]).encode()).digest()
        draw = random.Random(same_for_both_orders)
        if draw.random() < self.first:
            return 1
        is_better = self.better(asked, one, other)
        if is_better is None:
            return 0
        return 1 if is_better == (draw.random() < self.accuracy) else 2
