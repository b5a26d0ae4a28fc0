"""Statistics of preferences: confidence interval of the win rate, votes needed to settle it, agreement of voters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95
POWER = 0.8  # the chance that the stated number of additional votes settles it
_Z = 1.959963984540054  # the normal distribution's quantile at (1 + CONFIDENCE) / 2
_Z_POWER = 0.8416212335729143  # … and at POWER
_MOST = 1_000_000
WIN, TIE, LOSS = 1.0, 0.5, 0.0


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval (1927) for a proportion, 95 %.

    Args:
        successes: may contain halves (a tie is half a win). Their variance is smaller than a binomial's with the same
            mean, so the interval may be too wide, but not too narrow.
        n: the number of trials; 0 gives (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    square = _Z**2 / n
    centre = (p + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def summarise(a: str, b: str, outcomes: Mapping[Any, Sequence[float]]) -> dict[str, Any]:
    """The preferences between two models.

    Votes on one input are not independent, whether they come from several people, repeats or orders. So each input
    counts once: as a win if the mean of its votes is above 1/2, as a loss if it is below, else as a tie.

    Args:
        a, b: names; wins are a's.
        outcomes: input → one value for each vote: 1 (a preferred), 1/2 (equal) or 0 (b preferred); none is empty.

    Returns:
        a, b, wins, losses, ties (numbers of inputs), win_rate (a tie is half a win; 1/2 without data), interval (see
        wilson), settled (the interval excludes 1/2), more_votes (additional inputs that would settle it with a chance
        of 80 % if the observed rate is the true one; 0 if it is settled, None if no practicable number would).
    """
    means = [sum(values) / len(values) for values in outcomes.values()]
    wins, losses = sum(mean > TIE for mean in means), sum(mean < TIE for mean in means)
    ties = len(means) - wins - losses
    n = len(means)
    rate = (wins + ties / 2) / n if n else TIE
    low, high = wilson(wins + ties / 2, n)
    settled = low > TIE or high < TIE
    return {
        "a": a,
        "b": b,
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "win_rate": rate,
        "interval": [low, high],
        "settled": settled,
        "more_votes": 0 if settled else _more(wins, losses, ties),
    }


def _more(wins: int, losses: int, ties: int) -> int | None:
    """The number of additional inputs; None if it cannot be computed or is too large.

    Wilson's interval excludes 1/2 if |p - 1/2| √n > z/2. If p is normally distributed about the observed rate, with
    deviation s/√n, this has a chance of 80 % from √n = (z/2 + 0.84 s) / |p - 1/2| on.
    """
    n = wins + losses + ties
    distance = abs(wins - losses) / (2 * n) if n else 0.0
    if not distance:
        return None
    deviation = math.sqrt(max(0.0, (wins + losses) / (4 * n) - distance**2))
    total = math.ceil(((_Z / 2 + _Z_POWER * deviation) / distance) ** 2)
    return max(1, total - n) if total <= _MOST else None


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for ordinal values, with missing values where a person has not judged a unit.

    As in Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): 1 - observed / expected disagreement, over
    the coincidences of values within units; 1 is perfect agreement, 0 that of chance, below 0 systematic disagreement.

    Args:
        units: for each unit its values, one per person; units with fewer than two values are ignored.

    Returns:
        None if no unit has two values, or if all values are equal, for which alpha is undefined.
    """
    coincidences: Counter[tuple[float, float]] = Counter()
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        for one, m in counts.items():
            for other, k in counts.items():
                coincidences[one, other] += m * (k - (one == other)) / (len(values) - 1)  # type: ignore[assignment]
    totals: Counter[float] = Counter()
    for (one, _), weight in coincidences.items():
        totals[one] += weight
    n = sum(totals.values())
    ranked = sorted(value for value, weight in totals.items() if weight)
    if n < 2 or len(ranked) < 2:
        return None

    def distance(i: int, j: int) -> float:
        between = sum(totals[value] for value in ranked[i : j + 1])
        return (between - (totals[ranked[i]] + totals[ranked[j]]) / 2) ** 2

    observed = expected = 0.0
    for i, one in enumerate(ranked):
        for j in range(i + 1, len(ranked)):
            square = distance(i, j)
            observed += coincidences[one, ranked[j]] * square
            expected += totals[one] * totals[ranked[j]] * square
    return 1 - (n - 1) * observed / expected
