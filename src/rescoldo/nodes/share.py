"""Who computes which examples: so that all are done at the same time."""

from __future__ import annotations

from collections.abc import Sequence

MEMORY = 0.5  # how much of a machine's known speed gives way to a new measurement


def assign(costs: Sequence[float], speeds: Sequence[float]) -> list[int]:
    """The rank for each example: the costliest first, each to the machine that would be done with it soonest.

    Args:
        costs: of each example, in tokens.
        speeds: of each machine, in tokens per second; 0: not known yet, counted as fast as the others on average.
    """
    known = [speed for speed in speeds if speed > 0]
    usual = sum(known) / len(known) if known else 1.0
    rates = [speed if speed > 0 else usual for speed in speeds]
    done = [0.0] * len(rates)
    ranks = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        best = min(range(len(rates)), key=lambda rank: ((done[rank] + costs[i]) / rates[rank], rank))
        done[best] += costs[i]
        ranks[i] = best
    return ranks


def measured(speeds: Sequence[float], tokens: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """The speeds after a step in which each machine took so many seconds for so many tokens (none: as before)."""
    after = []
    for old, count, time in zip(speeds, tokens, seconds, strict=True):
        new = count / time if count > 0 and time > 0 else old
        after.append(new if old <= 0 else (1 - MEMORY) * old + MEMORY * new)
    return after
