"""What goes into the engine and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "int8", "nf4")
CALIBRATED = ("int8", "nf4")  # products in int8, by input ranges that are measured on examples
CALIBRATION_EXAMPLES = 4  # the first ones of the training data


@dataclass(frozen=True)
class Example:
    """A tokenized training or validation example.

    Attributes:
        tokens: prompt, then completion, then end of sequence.
        n_prompt: how many of `tokens` are prompt; the loss is on tokens[n_prompt:] (at least one).
    """

    tokens: tuple[int, ...]
    n_prompt: int

    @property
    def n_targets(self) -> int:
        """Tokens that the loss is on, end of sequence included."""
        return len(self.tokens) - self.n_prompt


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (arXiv 2106.09685): y = W·x + (alpha / rank)·B·(A·dropout(x)) on each target linear."""

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Sampling:
    """How to decode. temperature 0 is greedy; `seed` makes sampling a function of (seed, prompt, position)."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 42


class Constraint(Protocol):
    """Which tokens may come next in one row; it goes along with the row."""

    def mask_(self, logits: torch.Tensor) -> str:
        """Set the logits (V,) of all tokens that may not come next to -inf, in place; a stop token may where the answer
        may end. Returns why none may, "" as a rule."""

    def accept(self, token: int) -> None:
        """Go on behind a token that was allowed and is no stop token."""


@dataclass(frozen=True)
class Generated:
    """One finished row of a batch: `index` is the prompt's place, `tokens` the new ones without the stop token."""

    index: int
    tokens: list[int]
    ended: bool  # stopped by itself (a stop token), not cut off
    seconds: float  # from the batch's start to this row's end
    error: str = ""  # why its constraint could not go on
