"""Words of a text, equality of texts, and texts that are safe to show on a terminal or a page."""

from __future__ import annotations

import re
import unicodedata

# control characters, and marks that change the direction of text, which would reverse the text after them
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def words(text: str) -> list[str]:
    """The words of a text: letters and digits, no case, no accents."""
    plain = text.casefold()
    if not plain.isascii():
        decomposed = unicodedata.normalize("NFKD", plain)
        plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return re.findall(r"[^\W_]+", plain)


def same(text: str) -> str:
    """A key that is equal for equal texts: case, accents, punctuation and spacing do not count."""
    return " ".join(words(text))


def printable(text: str) -> str:
    """A text that is safe to print: control characters except newline and tab, and marks that reverse the text after
    them, become U+FFFD; line ends become newlines."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))
