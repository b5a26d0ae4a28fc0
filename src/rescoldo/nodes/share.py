"""Who computes which examples: so that all are done at the same time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rescoldo.engine.prefix import group_by_prefix
from rescoldo.engine.types import Example

SLOW = 0.5  # of the other machines' speed: below that a machine is named
MEMORY = 0.5  # how much of a machine's known speed gives way to a new measurement


@dataclass(frozen=True)
class Load:
    """What the examples of a step cost. Tokens.

    Attributes:
        own: of each example, without the beginning that it shares.
        group: which group each example shares its beginning with.
        shared: of each group's beginning: paid once by every machine that has an example of the group.
    """

    own: tuple[float, ...]
    group: tuple[int, ...]
    shared: tuple[float, ...]

    @property
    def whole(self) -> float:
        """All of it on one machine."""
        return sum(self.own) + sum(self.shared)

    def of(self, ranks: Sequence[int], size: int) -> list[float]:
        """What each of `size` machines has to do when example i is computed by ranks[i]."""
        loads = [0.0] * size
        for cost, rank in zip(self.own, ranks, strict=True):
            loads[rank] += cost
        for rank, group in set(zip(ranks, self.group, strict=True)):
            loads[rank] += self.shared[group]
        return loads


def load_of(examples: Sequence[Example], *, share: bool) -> Load:
    """The load of a step's examples; `share`: as LoraModel.share_prefix."""
    groups = group_by_prefix(examples, share=share)
    at = {i: g for g, one in enumerate(groups) for i in one.indices}
    own = tuple(float(len(example.tokens) - groups[at[i]].length) for i, example in enumerate(examples))
    return Load(own, tuple(at[i] for i in range(len(examples))), tuple(float(one.length) for one in groups))


def assign(load: Load, speeds: Sequence[float]) -> list[int]:
    """The rank for each example: the costliest first, each to the machine that would be done with it soonest.

    Args:
        load: what the examples cost.
        speeds: of each machine, in tokens per second; 0: not known yet, counted as fast as the others on average.
    """
    known = [speed for speed in speeds if speed > 0]
    usual = sum(known) / len(known) if known else 1.0
    rates = [speed if speed > 0 else usual for speed in speeds]
    done = [0.0] * len(rates)
    begun: set[tuple[int, int]] = set()  # (rank, group) whose beginning is paid for
    ranks = [0] * len(load.own)

    def after(rank: int, i: int) -> float:
        beginning = 0.0 if (rank, load.group[i]) in begun else load.shared[load.group[i]]
        return done[rank] + beginning + load.own[i]

    for i in sorted(range(len(load.own)), key=lambda i: (-load.own[i], i)):
        best = min(range(len(rates)), key=lambda rank: (after(rank, i) / rates[rank], rank))
        done[best] = after(best, i)
        begun.add((best, load.group[i]))
        ranks[i] = best
    return ranks


def measured(speeds: Sequence[float], tokens: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """The speeds after a step in which each machine took so many seconds for so many tokens (none: as before)."""
    after = []
    for old, count, time in zip(speeds, tokens, seconds, strict=True):
        new = count / time if count > 0 and time > 0 else old
        after.append(new if old <= 0 else (1 - MEMORY) * old + MEMORY * new)
    return after


def slow_ones(speeds: Sequence[float]) -> list[int]:
    """The machines that are far slower than the others."""
    found = []
    for rank, speed in enumerate(speeds):
        others = [other for i, other in enumerate(speeds) if i != rank and other > 0]
        if speed > 0 and others and speed < SLOW * statistics.median(others):
            found.append(rank)
    return found
