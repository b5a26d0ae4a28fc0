"""ROUGE-L (Lin 2004): F1 of the longest common subsequence of words of an answer and its reference."""

from __future__ import annotations

from collections.abc import Sequence

from rescoldo.words import words

MAX_WORDS = 20_000


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of two texts, 0..1; 1 for two texts without words, 0 if only one has none.

    Words are letters and digits of any language, without case and accents (rouge-score only uses a-z and 0-9).
    """
    own, wanted = words(answer)[:MAX_WORDS], words(reference)[:MAX_WORDS]
    if not own or not wanted:
        return float(own == wanted)
    return 2 * common_subsequence(own, wanted) / (len(own) + len(wanted))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence (Hyyrö's bit-parallel algorithm: a row of the table is one
    integer)."""
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(first) - row.bit_count()
