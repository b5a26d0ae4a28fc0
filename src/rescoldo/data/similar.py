"""When two texts are the same, or one a rewording of the other: overlap of their 5-grams of words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rescoldo.words import words

GRAM = 5
_SIGNED = re.compile(r"\w+|[^\w\s]")
NEAR = 0.5  # share of the shorter text's 5-grams that the other has too, from which on it is a near-duplicate


def grams(text: str, size: int = GRAM, *, signs: bool = False) -> frozenset[tuple[str, ...]]:
    """The word `size`-grams of a text; a shorter text is one gram of all its words. With `signs`, each sign (+, -, ?)
    is a word too, and capitals and accents count."""
    parts = _SIGNED.findall(text) if signs else words(text)
    if len(parts) <= size:
        return frozenset([tuple(parts)] if parts else [])
    return frozenset(tuple(parts[i : i + size]) for i in range(len(parts) - size + 1))


def near_pairs(texts: Sequence[str], *, signs: bool = False) -> list[tuple[int, int, float]]:
    """(later, earlier, overlap) for each pair of texts that overlap by NEAR or more, in order; the same text counts.

    Overlap: shared 5-grams / the smaller of both numbers of 5-grams. `signs`: see grams; for texts in which a sign can
    make another question (3+2, 3-2).
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
            if len(holders) < 50:  # a phrase that everybody uses tells nothing, and would cost the square of the texts
                holders.append(later)
        sizes.append(len(own))
        for earlier, count in sorted(shared.items()):
            overlap = count / min(len(own), sizes[earlier])
            if overlap >= NEAR:
                pairs.append((later, earlier, overlap))
    return pairs
