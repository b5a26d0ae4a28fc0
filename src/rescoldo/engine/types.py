"""The engine's input and output types."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rescoldo.engine.kinds import KINDS, PLAIN

if TYPE_CHECKING:
    import torch

CALIBRATION_EXAMPLES = 4  # the first examples of the training data


@dataclass(frozen=True)
class Example:
    """A tokenized training or validation example.

    Attributes:
        tokens: prompt, then completion, then end of sequence.
        n_prompt: the number of tokens before the first target (at least one); tokens[n_prompt:] are the targets.
        weights: each target's weight in the loss; 0 means that it is not a target, as for the user's turns between the
            answers of a conversation. None: 1 for each.
        documents: if several documents are packed into one example, the indices in `tokens` at which the second and
            later ones begin: none attends to another, and each has positions from 0. The first token of a document has
            weight 0. Such an example has n_prompt 1, so it shares no prefix with others.
    """

    tokens: tuple[int, ...]
    n_prompt: int
    weights: tuple[float, ...] | None = None
    documents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.documents:
            edges = (0, *self.documents, len(self.tokens))
            if self.n_prompt != 1 or any(b <= a for a, b in itertools.pairwise(edges)):
                raise ValueError("documents must be ascending indices of tokens, after a prompt of one token")
            if self.weights is None or any(self.weights[start - 1] for start in self.documents):
                raise ValueError("the first token of a document has nothing before it: its weight must be 0")
        if self.weights is not None:
            wrong = len(self.weights) != len(self.tokens) - self.n_prompt
            if wrong or not all(math.isfinite(w) and w >= 0 for w in self.weights) or not any(self.weights):
                raise ValueError("weights must be one finite number of at least 0 for each target, not all of them 0")

    def spans(self, start: int = 0) -> list[tuple[int, int]]:
        """(first, end) of each document's tokens from `start` on, without the example's last token, which has no
        target: the tokens that a pass computes."""
        edges = (start, *self.documents, max(len(self.tokens) - 1, start))
        return [(a, b) for a, b in itertools.pairwise(edges) if b > a]

    @property
    def n_targets(self) -> int:
        """The number of tokens with a loss, including the end of sequence."""
        if self.weights is None:
            return len(self.tokens) - self.n_prompt
        return sum(weight != 0 for weight in self.weights)

    @property
    def total_weight(self) -> float:
        """The sum of the targets' weights, the divisor of a mean loss: their number if all weights are 1."""
        return self.n_targets if self.weights is None else math.fsum(self.weights)

    @property
    def passes(self) -> tuple[Example, ...]:
        """The sequences that an optimizer step computes for this example, forward and backward."""
        return (self,)

    @property
    def scored(self) -> tuple[Example, ...]:
        """The sequences whose log-probabilities the objective compares with those of the reference model."""
        return (self,)

    @property
    def n_tokens(self) -> int:
        """The number of tokens of all its sequences."""
        return len(self.tokens) + sum(len(one.tokens) for one in self.scored[1:])


@dataclass(frozen=True, kw_only=True)
class Pair(Example):
    """A prompt with two answers. Its own tokens are the prompt and the preferred answer.

    Attributes:
        rejected: the same prompt with the other answer.
        reference: the summed log-probabilities (nats) of the preferred and the rejected answer under the model before
            training; None until they are measured.
    """

    rejected: Example
    reference: tuple[float, ...] | None = None

    @property
    def passes(self) -> tuple[Example, ...]:
        """Both answers."""
        return (self, self.rejected)

    @property
    def scored(self) -> tuple[Example, ...]:
        """Both answers."""
        return (self, self.rejected)


@dataclass(frozen=True, kw_only=True)
class Judged(Example):
    """A single answer labelled as good or bad.

    Attributes:
        good: the label.
        mismatched: the same prompt with the answer to another one, which measures how far the model has moved (KTO).
        reference: like `Pair.reference`, of the answer and of the mismatched one.
    """

    good: bool
    mismatched: Example
    reference: tuple[float, ...] | None = None

    @property
    def scored(self) -> tuple[Example, ...]:
        """The answer and the mismatched one."""
        return (self, self.mismatched)


@dataclass(frozen=True)
class LoraConfig:
    """The linears that have an adapter, and its kind and size.

    Attributes:
        rank, alpha: for targets that are not in `ranks` and `alphas`.
        targets: short names of linears ("q_proj").
        kind: a key of `kinds.KINDS`, which has the formula.
        ranks, alphas: for single targets, by their short names (PEFT's rank_pattern and alpha_pattern).
        layers: the layers that have adapters, ascending; None: all.
    """

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    kind: str = PLAIN
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None

    def rank_of(self, linear: str) -> int:
        """The rank of a target's adapter; the linear is given by its short name or with its modules."""
        return self.ranks.get(linear.rpartition(".")[2], self.rank)

    def alpha_of(self, linear: str) -> float:
        """The alpha of a target's adapter."""
        return self.alphas.get(linear.rpartition(".")[2], self.alpha)

    def scale_of(self, linear: str) -> float:
        """The factor on B·A in a target's adapter."""
        return KINDS[self.kind].scale(self.alpha_of(linear), self.rank_of(linear))

    @property
    def magnitude(self) -> bool:
        """Whether each adapted linear has trained magnitudes."""
        return KINDS[self.kind].magnitude

    def trains(self, tensor: str) -> bool:
        """Whether a tensor of the adapter is trained, by its name ("model.layers.0.self_attn.q_proj.lora_A")."""
        return tensor.rpartition(".")[2] not in KINDS[self.kind].frozen

    @property
    def first_layer(self) -> int:
        """The lowest layer with an adapter, where the backward pass ends."""
        return 0 if self.layers is None else min(self.layers, default=0)


@dataclass(frozen=True)
class Sampling:
    """How to decode. Temperature 0 is greedy; with `seed`, sampling is a function of (seed, prompt, position)."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 42


class Constraint(Protocol):
    """Which tokens may come next in one row; it has the row's state."""

    def mask_(self, logits: torch.Tensor) -> str:
        """Set the logits (V,) of all tokens that are not allowed to -inf, in place; stop tokens are allowed where the
        answer may end. Returns why no token is allowed, normally ""."""

    def allows(self, token: int) -> bool:
        """Whether a token may come next. True is certain; if it is False, `mask_` decides."""

    def accept(self, token: int) -> None:
        """Advance by a token that was allowed and is not a stop token."""


@dataclass(frozen=True)
class Generated:
    """One finished row of a batch: `index` is the prompt's, `tokens` the new ones without the stop token."""

    index: int
    tokens: list[int]
    ended: bool  # ended by a stop token, not cut off
    seconds: float  # from the batch's start to this row's end
    error: str = ""  # why its constraint allowed no token
