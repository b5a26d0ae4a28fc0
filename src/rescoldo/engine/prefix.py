"""Grouping of examples by common prefixes that are worth sharing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rescoldo.engine.types import Example

MINIMUM = 16  # minimum length of a prefix that is worth a pass of its own
_DEPTH = 64  # maximum depth of nested prefixes: prompts that each continue the previous one would nest without limit


@dataclass(frozen=True)
class PrefixGroup:
    """Examples (indices) whose first `length` tokens are the same and computed once; 0: nothing is shared."""

    indices: tuple[int, ...]
    length: int


def _cost(group: Sequence[PrefixGroup], examples: Sequence[Example]) -> int:
    return sum(g.length + sum(len(examples[i].tokens) - g.length for i in g.indices) for g in group)


def group_by_prefix(examples: Sequence[Example], minimum: int = MINIMUM, *, share: bool = True) -> list[PrefixGroup]:
    """Partition the examples into groups that share a prefix, so that as few tokens as possible are computed.

    A prefix ends at least one token before each prompt does: the row that predicts the first target belongs to the
    example. Groups are ordered by their first example, so the result depends only on the input. Examples with the same
    prompt are always in one group; without `share` all examples form one group that shares nothing.
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
