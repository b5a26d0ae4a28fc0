"""Two models on the same inputs: is the difference more than luck?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8  # chance with which as many examples as are named settle it
METHOD = "betting"  # what `interval_95` is computed by, see mean_interval
TIE = 1e-9  # scores are sums of thirds and fifths: differences below this are rounding
_DECIMALS = 9  # the same for two differences that are ranked: 0.9 - 0.8 and 0.8 - 0.7 are a tie
_MOST_EXAMPLES = 1 << 24
# The bets, as fractions of the money: dense near 0, where they are best for small effects and many examples, and one of
# (almost) all of it, with a fifth of the starting money, which is best where the differences are all alike.
_BETS = np.append(np.sin(np.pi / 2 * (np.arange(128) + 0.5) / 128) ** 2, 1 - 1e-9)
_LOG_WEIGHTS = np.log(np.append(np.full(128, 0.8 / 128), 0.2))
_LOG_LIMIT = math.log(2 / (1 - CONFIDENCE))  # each side may miss with half of what is left


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Compare scores of the same inputs, difference = second - first.

    Args:
        first, second: (n,) scores from 0 to 1, input by input.

    Returns:
        n; mean_difference; interval_95 [low, high] and interval_method (see mean_interval); wilcoxon {statistic,
        p_value, note} (signed-rank, two-sided, zero differences dropped); wins, ties, losses of the second; cohens_d
        (mean difference / standard deviation of the differences; None where that deviation is 0 and the mean is not);
        cohens_d_note.

    Raises:
        ValueError: different numbers of scores, or none; a score that is NaN, infinite, or not between 0 and 1.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{len(first)} and {len(second)} scores: paired comparison needs the same number, at least one"
        )
    old, new = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ValueError("a score is NaN or infinite: nothing follows from it")
    if min(old.min(), new.min()) < -TIE or max(old.max(), new.max()) > 1 + TIE:
        raise ValueError("a score is not between 0 and 1")
    differences = new - old
    differences[np.abs(differences) < TIE] = 0.0
    d, note = cohens_d(differences)
    return {
        "n": len(differences),
        "mean_difference": float(differences.mean()),
        "interval_95": list(mean_interval(differences)),
        "interval_method": METHOD,
        "wilcoxon": wilcoxon(differences),
        "wins": int((differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((differences < 0).sum()),
        "cohens_d": d,
        "cohens_d_note": note,
    }


def mean_interval(differences: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the mean that (n,) differences in [-1, 1] were drawn from, for any n and any distribution.

    The confidence set of Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting",
    with a fixed mixture of bets, so that the order of the differences does not matter. Let x = (1 + difference) / 2,
    and let somebody bet that its mean is above m: of each unit of money a fraction s buys x / m. If the mean is m, what
    the money is expected to be stays 1, so it exceeds 40 with a chance of 1/40 at most (Markov's inequality): every m
    at which it does is excluded. The same from above. Nothing is assumed but the bounds and independent inputs;
    therefore it is wider than what is right only for large n, and never a point.

    Returns:
        (low, high), in [-1, 1], with the mean of the differences inside.
    """
    x = np.clip((1 + differences) / 2, 0.0, 1.0)
    return 2 * _lower(x) - 1, 1 - 2 * _lower(1 - x)


def bounded_interval(values: np.ndarray) -> tuple[float, float]:
    """The same for the mean of (n,) independent values in [0, 1]: (low, high)."""
    return _lower(values), 1 - _lower(1 - values)


def _lower(x: np.ndarray) -> float:
    """The greatest m that (n,) values in [0, 1] exclude as their mean, with all below; the wealth falls as m grows."""
    values, counts = np.unique(x, return_counts=True)
    low, high = 0.0, float(x.mean())
    for _ in range(50):
        middle = (low + high) / 2
        if middle <= 0.0 or _log_wealth(_growth(values, middle), counts) >= _LOG_LIMIT:
            low = middle
        else:
            high = middle
    return low


def _growth(values: np.ndarray, m: float) -> np.ndarray:
    """(bets, n): the logarithm of what a unit of money becomes by one value in [0, 1], when it is bet against m."""
    return np.log1p(np.outer(_BETS, values / m - 1))


def _log_wealth(growth: np.ndarray, counts: np.ndarray) -> float:
    """The logarithm of the wealth of all bets together, after each value has come `counts` times."""
    return float(np.logaddexp.reduce(growth @ counts + _LOG_WEIGHTS))


def fewest_to_settle(threshold: float) -> int:
    """The fewest examples with which any result at all (all differences 1, or all -1) excludes the threshold."""
    n = 1
    while mean_interval(np.ones(n))[0] <= threshold and mean_interval(-np.ones(n))[1] >= threshold:
        n += 1
    return n


def wilcoxon(differences: np.ndarray) -> dict[str, Any]:
    """Wilcoxon's signed-rank test of (n,) differences; where all are zero there is no difference to test: p = 1."""
    if not differences.any():
        return {"statistic": None, "p_value": 1.0, "note": "no difference: both models score the same on every input"}
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

    Taken to be true is the distribution seen so far. mean_interval excludes the threshold when the wealth reaches its
    limit there. With bet s, an example adds g on average to the wealth's logarithm, with a standard deviation of d: n
    of them add n·g - z·√n·d or more with a chance of 80 %, where z = 0.84. The n is the first at which that is enough.

    Args:
        differences: in [-1, 1]. threshold: strictly inside.

    Returns:
        n; None if there is one example only, the mean is on the threshold, or more than 16 million are needed.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2 or abs(mean - threshold) < TIE:
        return None
    x, m = (1 + values) / 2, (1 + threshold) / 2
    growth = _growth(np.clip(x, 0, 1), m) if mean > threshold else _growth(np.clip(1 - x, 0, 1), 1 - m)
    average, deviation = growth.mean(axis=1), growth.std(axis=1)
    z = float(stats.norm.ppf(POWER))

    def enough(n: int) -> bool:
        return _log_wealth((n * average - z * math.sqrt(n) * deviation)[:, None], np.ones(1)) >= _LOG_LIMIT

    high = 1
    while not enough(high):
        if high >= _MOST_EXAMPLES:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of which `successes` of `n` were seen (a mean of shares times n is allowed).

    Raises:
        ValueError: n is not positive, or there are more successes than tries, or fewer than none.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)


def fisher_greater(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Fisher's exact test, one-sided: how probable so many successes of the first are, if its share is the second's.

    Args:
        first, second: (successes, tries).
    """
    (a, n), (b, m) = first, second
    total = math.comb(n + m, a + b)
    return sum(math.comb(n, k) * math.comb(m, a + b - k) for k in range(a, min(n, a + b) + 1)) / total
