"""Replay: old examples mixed into new ones against catastrophic forgetting."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from rescoldo.data.dataset import Dataset, digest


def mixed(new: Dataset, old: Dataset, share: float, seed: int) -> Dataset:
    """All new examples, mixed with as many old ones as make up `share` of the result, or with all old ones if there are
    too few. The seed decides which ones; they are spread evenly among the new ones.

    Args:
        share: above 0, below 1.
    """
    n = len(new.examples) - new.texts  # windows of plain text stay at the end
    wanted = max(1, round((n or new.texts) * share / (1 - share)))
    order = sorted(range(len(old.examples)), key=lambda i: hashlib.sha256(f"{seed}:replay:{i}".encode()).digest())
    chosen = order[:wanted]
    places = [((i + 0.5) / n, new, i) for i in range(n)]
    places += [((k + 0.5) / len(chosen), old, i) for k, i in enumerate(chosen)]
    places.sort(key=lambda place: place[0])
    places += [(1.0, new, i) for i in range(n, n + new.texts)]
    examples = [data.examples[i] for _, data, i in places]
    return replace(
        new,
        examples=examples,
        names=[data.names[i] for _, data, i in places],
        overruns=[*new.overruns, *(replace(overrun, file=old.path.name) for overrun in old.overruns)],
        digest=digest(examples),
        replayed=old,
        notes=tuple(dict.fromkeys((*new.notes, *old.notes))),
    )
