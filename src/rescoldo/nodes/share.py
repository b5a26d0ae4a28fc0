"""Assignment of examples to machines, so that all finish at the same time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rescoldo.engine.prefix import group_by_prefix
from rescoldo.engine.types import Example

SLOW = 0.5  # a machine slower than this fraction of the others' speed is reported
MEMORY = 0.5  # weight of a new measurement in a machine's running average


@dataclass(frozen=True)
class Load:
    """The cost of a step's examples, in tokens.

    Attributes:
        own: of each example, without the prefix that it shares.
        group: the group with which each example shares its prefix.
        shared: of each group's prefix, which every machine with an example of the group computes once.
    """

    own: tuple[float, ...]
    group: tuple[int, ...]
    shared: tuple[float, ...]

    @property
    def whole(self) -> float:
        """The cost on a single machine."""
        return sum(self.own) + sum(self.shared)

    def of(self, ranks: Sequence[int], size: int) -> list[float]:
        """The cost on each of `size` machines if example i is computed by ranks[i]."""
        loads = [0.0] * size
        for cost, rank in zip(self.own, ranks, strict=True):
            loads[rank] += cost
        for rank, group in set(zip(ranks, self.group, strict=True)):
            loads[rank] += self.shared[group]
        return loads


def load_of(examples: Sequence[Example], *, share: bool) -> Load:
    """The load of a step's examples; `share`: see LoraModel.share_prefix."""
    groups = group_by_prefix(examples, share=share)
    at = {i: g for g, one in enumerate(groups) for i in one.indices}
    own = tuple(float(len(example.tokens) - groups[at[i]].length) for i, example in enumerate(examples))
    return Load(own, tuple(at[i] for i in range(len(examples))), tuple(float(one.length) for one in groups))


def assign(load: Load, speeds: Sequence[float]) -> list[int]:
    """The rank for each example: the costliest first, each to the machine that would finish it first.

    Args:
        load: the cost of the examples.
        speeds: of each machine, in tokens per second; 0: unknown, assumed to be the average of the others.
    """
    known = [speed for speed in speeds if speed > 0]
    usual = sum(known) / len(known) if known else 1.0
    rates = [speed if speed > 0 else usual for speed in speeds]
    done = [0.0] * len(rates)
    begun: set[tuple[int, int]] = set()  # (rank, group) whose prefix is already counted
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
    """The speeds after a step in which each machine took `seconds` for `tokens` (unchanged without tokens)."""
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
