"""Two models on the same inputs: is the difference more than luck?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
POWER = 0.8  # chance with which as many examples as are named settle it
TIE = 1e-9  # scores are sums of thirds and fifths: differences below this are rounding
_DECIMALS = 9  # the same for two differences that are ranked: 0.9 - 0.8 and 0.8 - 0.7 are a tie


def paired(first: Sequence[float], second: Sequence[float], *, seed: int = 42) -> dict[str, Any]:
    """Compare scores of the same inputs, difference = second - first.

    Args:
        first, second: (n,) scores, input by input.
        seed: of the bootstrap; the same seed gives the same interval.

    Returns:
        n; mean_difference; interval_95 [low, high] (paired bootstrap, percentile method); wilcoxon {statistic, p_value,
        note} (signed-rank, two-sided, zero differences dropped); wins, ties, losses of the second; cohens_d (mean
        difference / standard deviation of the differences; None where that deviation is 0 and the mean is not);
        cohens_d_note.

    Raises:
        ValueError: different numbers of scores, or none; a score that is no number.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{len(first)} and {len(second)} scores: paired comparison needs the same number, at least one"
        )
    old, new = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ValueError("a score is no number: nothing follows from it")
    differences = new - old
    differences[np.abs(differences) < TIE] = 0.0
    d, note = cohens_d(differences)
    return {
        "n": len(differences),
        "mean_difference": float(differences.mean()),
        "interval_95": list(bootstrap_interval(differences, seed=seed)),
        "wilcoxon": wilcoxon(differences),
        "wins": int((differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((differences < 0).sum()),
        "cohens_d": d,
        "cohens_d_note": note,
    }


def bootstrap_interval(differences: np.ndarray, *, seed: int = 42, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of (n,) differences, resampling inputs with replacement."""
    n = len(differences)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 1_000_000 // n)  # rows of resampled indices at a time, so that memory stays at some megabytes
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = differences[generator.integers(0, n, size=(rows, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def wilcoxon(differences: np.ndarray) -> dict[str, Any]:
    """Wilcoxon's signed-rank test of (n,) differences; where all are zero there is no difference to test: p = 1."""
    if not differences.any():
        return {"statistic": None, "p_value": 1.0, "note": "no difference: every input has the same score twice"}
    from scipy import stats

    result = stats.wilcoxon(np.round(differences, _DECIMALS), zero_method="wilcox", alternative="two-sided")
    return {"statistic": float(result.statistic), "p_value": float(result.pvalue), "note": ""}


def cohens_d(differences: np.ndarray) -> tuple[float | None, str]:
    """Cohen's d of (n,) paired differences, and a word on it."""
    mean = float(differences.mean())
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if deviation < TIE:
        if abs(mean) < TIE:
            return 0.0, "no difference"
        return None, "not defined: one input only" if len(differences) == 1 else "not defined: all differences equal"
    d = mean / deviation
    size = next(
        (name for limit, name in ((0.2, "negligible"), (0.5, "small"), (0.8, "medium")) if abs(d) < limit), "large"
    )
    return d, size


def examples_to_settle(differences: Sequence[float], threshold: float) -> int | None:
    """How many examples in all are needed to see on which side of the threshold the mean difference is.

    Taken to be true are the mean and the deviation seen so far. Then a 95 % interval from n examples, mean ± t·s/√n,
    excludes the threshold with a chance of 80 % from the n on for which √n·|mean - threshold|/s reaches
    t(0.975, n - 1) + t(0.8, n - 1): the first part is the interval's half width, the second keeps four means of five
    beyond it. Without the second part it would be a toss of a coin.

    Returns:
        n, 2 or more; None if the mean stands on the threshold (no number would do) or there is one example only.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    distance = abs(float(values.mean()) - threshold)
    if len(values) < 2 or distance < TIE:
        return None
    ratio = float(values.std(ddof=1)) / distance
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER))
    n = max(2, math.ceil((z * ratio) ** 2))
    while n < 1000 and math.sqrt(n) < ratio * (stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) + stats.t.ppf(POWER, n - 1)):
        n += 1  # from 1000 on, t is the normal distribution
    return n
