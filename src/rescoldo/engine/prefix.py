"""Which examples share a beginning, and how much of it is worth sharing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rescoldo.engine.types import Example

MINIMUM = 16  # a shorter common beginning is not worth a pass of its own
_DEPTH = 64  # nested beginnings followed: prompts that each continue the one before would nest without end


@dataclass(frozen=True)
class PrefixGroup:
    """Examples (by index) whose first `length` tokens are the same and computed once; 0: nothing shared."""

    indices: tuple[int, ...]
    length: int


def _cost(group: Sequence[PrefixGroup], examples: Sequence[Example]) -> int:
    return sum(g.length + sum(len(examples[i].tokens) - g.length for i in g.indices) for g in group)


def group_by_prefix(examples: Sequence[Example], minimum: int = MINIMUM, *, share: bool = True) -> list[PrefixGroup]:
    """Partition the examples so that the fewest tokens are computed, each group sharing one prefix.

    A prefix ends at the latest one token before a prompt does: the row that predicts the first target stays the
    example's own. The order is that of each group's first example, so the result depends on nothing but the input.
    Examples with the same prompt are always in one group, and without `share` all are one that shares nothing.
    """
    if not examples:
        return []
    if not share:
        return [PrefixGroup(tuple(range(len(examples))), 0)]
    groups = _partition(tuple(range(len(examples))), 0, examples, minimum, _DEPTH)
    return sorted(groups, key=lambda group: group.indices[0])


def _partition(
    indices: tuple[int, ...], known: int, examples: Sequence[Example], minimum: int, depth: int
) -> list[PrefixGroup]:
    first = examples[indices[0]].tokens
    if len(indices) == 1:
        return [PrefixGroup(indices, 0)]
    limit = min(examples[i].n_prompt - 1 for i in indices)
    length = known
    while length < limit and all(examples[i].tokens[length] == first[length] for i in indices):
        length += 1
    together = [PrefixGroup(indices, length if length >= minimum else 0)]
    branches: dict[int, list[int]] = {}
    for i in indices:
        branches.setdefault(examples[i].tokens[length] if examples[i].n_prompt - 1 > length else -1, []).append(i)
    if len(branches) == 1 or depth == 0:
        return together
    apart = [
        group
        for token, branch in branches.items()
        for group in (
            [PrefixGroup(tuple(branch), length if len(branch) > 1 and length >= minimum else 0)]
            if token == -1
            else _partition(tuple(branch), length, examples, minimum, depth - 1)
        )
    ]
    return apart if _cost(apart, examples) < _cost(together, examples) else together
