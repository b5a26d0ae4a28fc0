"""Exact and near-duplicates of texts, by the overlap of their word 5-grams."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rescoldo.words import words

GRAM = 5
_SIGNED = re.compile(r"\w+|[^\w\s]")
NEAR = 0.5  # two texts are near-duplicates if they share at least this fraction of the shorter one's 5-grams


def grams(text: str, size: int = GRAM, *, signs: bool = False) -> frozenset[tuple[str, ...]]:
    """The word `size`-grams of a text; a shorter text is a single gram of all its words. With `signs`, each sign (+, -,
    ?) counts as a word, and capitals and accents matter."""
    parts = _SIGNED.findall(text) if signs else words(text)
    if len(parts) <= size:
        return frozenset([tuple(parts)] if parts else [])
    return frozenset(tuple(parts[i : i + size]) for i in range(len(parts) - size + 1))


def near_pairs(texts: Sequence[str], *, signs: bool = False) -> list[tuple[int, int, float]]:
    """(later, earlier, overlap) for each pair of texts with an overlap of at least NEAR, in order; equal texts
    included.

    The overlap is the number of shared 5-grams divided by the smaller number of 5-grams. `signs`: see grams; for texts
    where a sign can make a different question (3+2, 3-2).
    """
    index: dict[tuple[str, ...], list[int]] = {}
    sizes: list[int] = []
    pairs: list[tuple[int, int, float]] = []
    for later, text in enumerate(texts):
        own = grams(text, signs=signs)
        shared: dict[int, int] = {}
        for gram in own:
            holders = index.setdefault(gram, [])
            for earlier in holders:
                shared[earlier] = shared.get(earlier, 0) + 1
            if len(holders) < 50:  # very common phrases say nothing about two texts, and would make this quadratic
                holders.append(later)
        sizes.append(len(own))
        for earlier, count in sorted(shared.items()):
            overlap = count / min(len(own), sizes[earlier])
            if overlap >= NEAR:
                pairs.append((later, earlier, overlap))
    return pairs
