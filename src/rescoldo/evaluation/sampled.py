"""Several answers to each input: pass@k and best-of-k, with intervals over inputs and samples.

Chen et al. 2021 ("Evaluating Large Language Models Trained on Code", arXiv 2107.03374) estimate pass@k from n ≥ k
samples without bias: the mean over all sets of k of them. `expected_best` is the same for any score, and pass@k the
case in which a score is 0 or 1.

The interval. An input's estimate is unbiased for that input, and inputs are drawn independently of each other. So the
estimates are independent values in [0, 1] whose mean is the figure that is asked for, and their spread holds both: how
inputs differ, and how samples do (law of total variance). `bounded_interval` of them therefore covers both. A bootstrap
of samples within inputs would not do: the best of n resampled answers is on average worse than that of n new ones.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rescoldo.evaluation.statistics import bounded_interval, mean_interval

PASSES = (0.8, 0.9, 1.0)  # scores from which on an answer passes
EPSILON = 1e-9  # so that sums of thirds and fifths count as what they are meant to be


def expected_best(scores: Sequence[float], k: int) -> float:
    """The mean, over all sets of k of n scores, of the set's best one: unbiased for the best of k new answers.

    Raises:
        ValueError: k is not between 1 and n.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"the best of {k} cannot be estimated from {n} scores")
    sets = math.comb(n, k)  # of them the score at place i, in ascending order, is the best in C(i, k - 1)
    return math.fsum(math.comb(i, k - 1) / sets * score for i, score in enumerate(sorted(scores)))


def pass_at(scores: Sequence[float], k: int, passes: float) -> float:
    """pass@k of one input: the chance that at least one of k answers scores `passes` or more."""
    return expected_best([float(score >= passes - EPSILON) for score in scores], k)


def sizes(n: int) -> list[int]:
    """The k for which figures are given: 1, 2, 4, … and n."""
    return sorted({*(1 << i for i in range(n.bit_length()) if 1 << i <= n), n})


def sampled(rows: Sequence[Mapping[str, Any]], selectable: bool) -> dict[str, Any] | None:
    """The figures of a model that answered each input several times; None where it answered once.

    Args:
        rows: predictions, each with example and score.
        selectable: whether the metric needs no right answer, so that the best answer can be chosen where it is used.

    Returns:
        samples (n, the fewest of an input); selectable; by_k [{k, best_of {mean, interval_95}, pass {"0.9": …}}];
        standard_error of the mean score; of_sampling: the share of its square that more samples of the same inputs
        would take away (one-way analysis of variance), None where nothing varies.
    """
    by_input = _by_input(rows)
    n = min(map(len, by_input))
    if n < 2:
        return None
    by_k = []
    for k in sizes(n):
        passing = {f"{limit}": _figure([pass_at(scores, k, limit) for scores in by_input]) for limit in PASSES}
        by_k.append({"k": k, "best_of": _figure([expected_best(scores, k) for scores in by_input]), "pass": passing})
    means = [statistics.fmean(scores) for scores in by_input]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    within = statistics.fmean(statistics.variance(scores) / len(scores) for scores in by_input) / len(by_input)
    return {
        "samples": n,
        "selectable": selectable,
        "by_k": by_k,
        "standard_error": error,
        "of_sampling": min(1.0, within / error**2) if error else None,
    }


def differences(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of two models that answered the same inputs several times: [{k, best_of {mean, interval_95}, pass {"0.9": …}}],
    second - first, over the inputs' differences; [] where one answered once."""
    pairs = list(zip(_by_input(first), _by_input(second), strict=True))
    n = min(min(len(old), len(new)) for old, new in pairs)
    if n < 2:
        return []
    found = []
    for k in sizes(n):
        best = [expected_best(new, k) - expected_best(old, k) for old, new in pairs]
        passing = {
            f"{limit}": _difference([pass_at(new, k, limit) - pass_at(old, k, limit) for old, new in pairs])
            for limit in PASSES
        }
        found.append({"k": k, "best_of": _difference(best), "pass": passing})
    return found


def sampled_tests(models: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """ "B - A" → differences, for each pair of models in this order; without those that answered once."""
    found = {}
    for old, new in combinations(order, 2):
        if steps := differences(models[old]["predictions"], models[new]["predictions"]):
            found[f"{new} - {old}"] = steps
    return found


def _by_input(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """The scores of each input, in the inputs' order."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(int(row["example"]), []).append(float(row["score"]))
    return [found[example] for example in sorted(found)]


def _figure(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "interval_95": list(bounded_interval(np.clip(values, 0.0, 1.0)))}


def _difference(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "interval_95": list(mean_interval(np.asarray(values, np.float64)))}
