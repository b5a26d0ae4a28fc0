"""Where the examples of a packed micro-batch lie, for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Where the examples of a packed micro-batch lie: example i has rows bounds[i]..bounds[i+1]-1, after `prefix`
    tokens that they all share."""

    bounds: Sequence[int]
    prefix: int

    def spans(self) -> list[tuple[int, int]]:
        """(first row, row behind the last) of each example."""
        return list(zip(self.bounds[:-1], self.bounds[1:], strict=True))
