"""Training objectives: a few functions each; `GradientStep` and the loop accept any objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rescoldo.engine.head import Head
from rescoldo.engine.types import Example

Measure = Callable[[Sequence[Example]], list[float]]  # the summed log-probability of each example's targets, in nats


@dataclass(frozen=True)
class Targets:
    """The n target tokens of some examples that were computed in one pass.

    Attributes:
        examples: the examples.
        at: (n,) int64, the row of the pass that predicts each target.
        tokens: (n,) int64, the targets.
        weights: (n,) float32; None: 1 for each.
        owner: (n,) int64, the index in `examples` of each target's example.
    """

    examples: Sequence[Example]
    at: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor | None
    owner: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """A loss over the targets of an optimizer step.

    Attributes:
        loss: (head, the last layer's output (T, D) float32, targets, scale) → the summed loss of these targets, without
            `scale`, and `scale` times its gradient w.r.t. the output (T, D) float32. `Head.loss` computes the gradient
            of any loss that is a function of the targets' log-probabilities: its derivatives are the weights.
        total: the divisor of the step's summed loss, a function of all its examples.
        begin: (function for log-probabilities, a step's examples) → the objective of that step, for objectives that
            need a statistic of the whole step before the first pass.
        evaluate: (function for log-probabilities, examples) → for each the summed loss, its divisor, and the `figures`;
            None: `engine.model.evaluate_loss`.
        figures: names of what `evaluate` measures in addition to the loss; the mean over the examples is reported.
        reference: whether the examples need their log-probabilities under the model before training.
    """

    loss: Callable[[Head, torch.Tensor, Targets, float], tuple[float, torch.Tensor]]
    total: Callable[[Sequence[Example]], float]
    begin: Callable[[Measure, Sequence[Example]], Objective] | None = None
    evaluate: Callable[[Measure, Sequence[Example]], list[tuple[float, ...]]] | None = None
    figures: tuple[str, ...] = ()
    reference: bool = False


def _cross_entropy(head: Head, h: torch.Tensor, targets: Targets, scale: float) -> tuple[float, torch.Tensor]:
    loss, dh = head.loss(h, targets.at, targets.tokens, targets.weights, scale)
    assert dh is not None
    return loss, dh


def _total_weight(examples: Sequence[Example]) -> float:
    return math.fsum(example.total_weight for example in examples)


CROSS_ENTROPY = Objective(_cross_entropy, _total_weight)


def targets_of(examples: Sequence[Example], starts: Sequence[int], prefix: int) -> Targets:
    """The targets of `examples`, whose rows begin at `starts` in a pass after a prefix of `prefix` tokens.

    Tokens with weight 0 are skipped.
    """
    at, tokens, weights, owner = [], [], [], []
    for number, (example, start) in enumerate(zip(examples, starts, strict=True)):
        first = start + example.n_prompt - 1 - prefix
        rows = torch.arange(first, first + len(example.tokens) - example.n_prompt)
        own = torch.tensor(example.tokens[example.n_prompt :])
        if example.weights is not None:
            weight = torch.tensor(example.weights, dtype=torch.float32)
            rows, own, weight = rows[weight != 0], own[weight != 0], weight[weight != 0]
        else:
            weight = torch.ones(len(own))
        at.append(rows)
        tokens.append(own)
        weights.append(weight)
        owner.append(torch.full((len(own),), number))
    weighted = any(example.weights is not None for example in examples)
    return Targets(
        examples, torch.cat(at), torch.cat(tokens), torch.cat(weights) if weighted else None, torch.cat(owner)
    )
