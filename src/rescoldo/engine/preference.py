"""Objectives on preferences: DPO, IPO, ORPO and KTO.

All are functions of the summed log-probability of an answer, so their gradient is that of cross-entropy with the same
weight, possibly negative, for all tokens of an answer. A pair's two answers share the passes over their prompt
(engine/prefix.py). The reference model's log-probabilities are measured once, before training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from rescoldo.engine.head import Head
from rescoldo.engine.objective import Measure, Objective, Targets
from rescoldo.engine.types import Example, Judged, Pair

FIGURES = ("accuracy", "margin")  # fraction of pairs in which the model prefers the right answer, and by how much
_LEAST = 1e-7  # lower bound of 1 - p, where p is the mean probability of an answer's tokens (ORPO)

# (an example, the summed log-probabilities of its passes) → (loss, its derivative by each of them)
Slope = Callable[[Example, Sequence[float]], tuple[float, tuple[float, ...]]]


def dpo(beta: float) -> Objective:
    """Direct preference optimization (arXiv 2305.18290, equation 7).

    -log s(beta * d), where s is the logistic function and d the difference of the two answers' log-probability ratios
    to the reference model.

    Args:
        beta: how strongly the model is tied to the reference.
    """

    def margin(example: Example, sums: Sequence[float]) -> float:
        before = _before(example)
        return beta * (sums[0] - sums[1] - (before[0] - before[1]))

    def slope(example: Example, sums: Sequence[float]) -> tuple[float, tuple[float, ...]]:
        z = margin(example, sums)
        return -_log_sigmoid(z), (-beta * _sigmoid(-z), beta * _sigmoid(-z))

    def figures(example: Example, sums: Sequence[float]) -> tuple[float, ...]:
        z = margin(example, sums)
        return float(z > 0), z

    return Objective(
        partial(_loss, slope), _count, evaluate=partial(_evaluate, slope, figures), figures=FIGURES, reference=True
    )


def ipo(beta: float) -> Objective:
    """Identity preference optimization (arXiv 2310.12036, equation 17): (d - 1 / (2 * beta))², where d is the
    difference of the two answers' log-probability ratios to the reference model, each divided by the length of its
    answer, as the paper's authors and TRL compute it.

    Args:
        beta: tau in the paper; the target margin is 1 / (2 * beta) nats per token.
    """

    def margin(example: Example, sums: Sequence[float]) -> float:
        before = _before(example)
        good, bad = ((now - was) / one.n_targets for now, was, one in zip(sums, before, example.passes, strict=True))
        return good - bad

    def slope(example: Example, sums: Sequence[float]) -> tuple[float, tuple[float, ...]]:
        away = margin(example, sums) - 1 / (2 * beta)
        good, bad = (2 * away / one.n_targets for one in example.passes)
        return away**2, (good, -bad)

    def figures(example: Example, sums: Sequence[float]) -> tuple[float, ...]:
        d = margin(example, sums)
        return float(d > 0), d

    return Objective(
        partial(_loss, slope), _count, evaluate=partial(_evaluate, slope, figures), figures=FIGURES, reference=True
    )


def orpo(weight: float) -> Objective:
    """Odds ratio preference optimization (arXiv 2403.07691, equations 6 and 7): the mean loss of the preferred answer's
    tokens, plus `weight` times -log s(log of the ratio of the two answers' odds). It needs no reference model.

    The first term uses the answer alone, as in the paper; TRL's implementation includes the prompt's tokens.
    """

    def slope(example: Example, sums: Sequence[float]) -> tuple[float, tuple[float, ...]]:
        lengths = [one.n_targets for one in example.passes]
        good, bad = (total / n for total, n in zip(sums, lengths, strict=True))
        rest = [max(-math.expm1(mean), _LEAST) for mean in (good, bad)]  # 1 - p
        z = good - bad - math.log(rest[0]) + math.log(rest[1])
        by_odds = -weight * _sigmoid(-z)
        loss = -good - weight * _log_sigmoid(z)
        return loss, ((by_odds / rest[0] - 1) / lengths[0], -by_odds / rest[1] / lengths[1])

    def figures(example: Example, sums: Sequence[float]) -> tuple[float, ...]:
        good, bad = (total / one.n_targets for total, one in zip(sums, example.passes, strict=True))
        return float(good > bad), good - bad

    return Objective(partial(_loss, slope), _count, evaluate=partial(_evaluate, slope, figures), figures=FIGURES)


def kto(beta: float, good_weight: float = 1.0, bad_weight: float = 1.0) -> Objective:
    """Kahneman-Tversky optimization (arXiv 2402.01306, equation 8): weight * (1 - s(beta * (r - away))) for a good
    answer, weight * (1 - s(beta * (away - r))) for a bad one, where r is its log-probability ratio to the reference,
    and `away` an estimate of the divergence from the reference: the mean ratio of the step's mismatched answers, at
    least 0, without gradient.

    Args:
        beta: how strongly the model is tied to the reference.
        good_weight, bad_weight: lambda_D and lambda_U.
    """

    def slope(away: float, example: Example, sums: Sequence[float]) -> tuple[float, tuple[float, ...]]:
        sign, weight = (1, good_weight) if _judged(example).good else (-1, bad_weight)
        s = _sigmoid(sign * beta * (sums[0] - _before(example)[0] - away))
        return weight * (1 - s), (-sign * weight * beta * s * (1 - s),)

    def figures(away: float, example: Example, sums: Sequence[float]) -> tuple[float, ...]:
        above, good = beta * (sums[0] - _before(example)[0] - away), _judged(example).good
        return float((above > 0) == good), above if good else -above

    def divergence(measure: Measure, examples: Sequence[Example]) -> float:
        now = measure([_judged(example).mismatched for example in examples])
        moved = math.fsum(a - _before(example)[1] for a, example in zip(now, examples, strict=True))
        return max(0.0, moved / len(examples))

    def begin(measure: Measure, examples: Sequence[Example]) -> Objective:
        return Objective(partial(_loss, partial(slope, divergence(measure, examples))), _count)

    def evaluate(measure: Measure, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        away = divergence(measure, examples)
        return _evaluate(partial(slope, away), partial(figures, away), measure, examples)

    return Objective(partial(_loss, partial(slope, 0.0)), _count, begin, evaluate, FIGURES, reference=True)


def _loss(slope: Slope, head: Head, h: torch.Tensor, targets: Targets, scale: float) -> tuple[float, torch.Tensor]:
    """Objective.loss for a function of the answers' log-probabilities."""
    each = head.log_probabilities(h, targets.at, targets.tokens).double()
    sums = torch.zeros(len(targets.examples), dtype=torch.float64).index_add_(0, targets.owner, each).tolist()
    total, factors = 0.0, torch.zeros(len(targets.examples))
    place = 0
    while place < len(targets.examples):
        example = targets.examples[place]
        end = place + len(example.passes)  # they are consecutive: they share a prompt, so they are in one group
        loss, by_sum = slope(example, sums[place:end])
        total += loss
        factors[place:end] = -torch.tensor(by_sum)
        place = end
    _, dh = head.loss(h, targets.at, targets.tokens, factors[targets.owner], scale)
    assert dh is not None
    return total, dh


def _evaluate(
    slope: Slope,
    figures: Callable[[Example, Sequence[float]], tuple[float, ...]],
    measure: Measure,
    examples: Sequence[Example],
) -> list[tuple[float, ...]]:
    """Objective.evaluate for a function of the answers' log-probabilities."""
    sums = measure([one for example in examples for one in example.passes])
    found: list[tuple[float, ...]] = []
    place = 0
    for example in examples:
        own = sums[place : place + len(example.passes)]
        found.append((slope(example, own)[0], 1.0, *figures(example, own)))
        place += len(example.passes)
    return found


def with_reference(examples: Sequence[Example], sums: Sequence[float]) -> list[Example]:
    """The examples with the log-probabilities `sums` under the reference model, of all their `scored` in order."""
    found: list[Example] = []
    place = 0
    for example in examples:
        assert isinstance(example, Pair | Judged)
        end = place + len(example.scored)
        found.append(replace(example, reference=tuple(sums[place:end])))
        place = end
    return found


def _before(example: Example) -> tuple[float, ...]:
    """The log-probabilities of its `scored` under the reference model."""
    assert isinstance(example, Pair | Judged)
    assert example.reference is not None, "measure the reference first"
    return example.reference


def _judged(example: Example) -> Judged:
    assert isinstance(example, Judged)
    return example


def _count(examples: Sequence[Example]) -> float:
    return float(len(examples))


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def _log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z >= 0 else z - math.log1p(math.exp(z))
