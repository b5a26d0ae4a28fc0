"""The words of a text, when two texts are the same, and what of a text a terminal or a page may be given."""

from __future__ import annotations

import re
import unicodedata

# control characters, and the marks that turn the direction of text: what stands behind them would look reversed
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


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


def printable(text: str) -> str:
    """A text without what a terminal or a page would obey: control characters but newline and tab, and marks that
    reverse the text behind them, become U+FFFD; line ends become newlines."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))
