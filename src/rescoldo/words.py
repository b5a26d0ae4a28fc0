"""The words of a text, and when two texts are the same."""

from __future__ import annotations

import re
import unicodedata


def words(text: str) -> list[str]:
    """The words of a text: letters and digits, no case, no accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"[^\W_]+", "".join(letter for letter in plain if not unicodedata.combining(letter)))


def same(text: str) -> str:
    """Two texts are the same if this is equal: case, accents, punctuation and spacing do not count."""
    return " ".join(words(text))
