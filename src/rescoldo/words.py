"""The words of a text, and when two texts are the same."""

from __future__ import annotations

import re
import unicodedata


def words(text: str) -> list[str]:
    """The words of a text: letters and digits, no case, no accents."""
    plain = text.casefold()
    if not plain.isascii():
        decomposed = unicodedata.normalize("NFKD", plain)
        plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return re.findall(r"[^\W_]+", plain)


def same(text: str) -> str:
    """Two texts are the same if this is equal: case, accents, punctuation and spacing do not count."""
    return " ".join(words(text))
