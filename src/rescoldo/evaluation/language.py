"""The languages of reports: a table of messages, and numbers as the language writes them.

What a report says is an English template with values. So are a document's own messages (reasons, warnings, notes): the
JSON has their English text, and beside it under `messages` the templates and values (see rescoldo.phrase). A message
without them, as in the documents of earlier versions and in the notes of a role's own metric, is shown as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.evaluation.spanish import SPANISH


@dataclass(frozen=True)
class Language:
    """How a report speaks. Calling it with an English template and values gives the text.

    Attributes:
        texts: English template → the language's, of all texts; empty for English itself.
        marks: what the language writes for the marks of a number as Python formats it (see str.translate).
    """

    code: str
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    marks: Mapping[int, str] = field(default_factory=dict, repr=False)

    def __call__(self, template: str, /, **values: Any) -> str:
        """A text.

        Args:
            values: texts as they are to stand there, numbers, and what Phrase.json gives of a phrase.

        Raises:
            KeyError: the table does not have the template.
        """
        return _Filled(self).vformat(self.texts[template] if self.texts else template, (), values)

    def number(self, value: float, spec: str = "d") -> str:
        """A number."""
        return format(value, spec).translate(self.marks)

    def percent(self, value: float, decimals: int = 0) -> str:
        """A share as a percentage."""
        return self.number(value, f".{decimals}%")

    def points(self, value: float) -> str:
        """A difference of shares in points of 100, with its sign."""
        return self.number(100 * value, "+.1f")

    def listed(self, parts: list[str]) -> str:
        """a, b and c."""
        if len(parts) < 2:
            return "".join(parts)
        return self("{first} and {last}", first=", ".join(parts[:-1]), last=parts[-1])

    def message(self, part: Mapping[str, Any], key: str) -> str:
        """A document's own message, which it has under this key."""
        return self._shown(str(part[key]), _data(part, key))

    def messages(self, part: Mapping[str, Any], key: str) -> list[str]:
        """A document's own messages, of which it has a list under this key."""
        texts, data = part.get(key) or (), _data(part, key)
        known = data if isinstance(data, Sequence) and len(data) == len(texts) else [None] * len(texts)
        return [self._shown(str(text), one) for text, one in zip(texts, known, strict=True)]

    def _shown(self, text: str, data: Any) -> str:
        """A message by its template and values. They come from a file: only the table's templates are filled in."""
        if not self.texts:
            return text
        try:
            return self(data["template"], **data["values"])
        except (KeyError, TypeError, ValueError, RecursionError):
            return text


class _Filled(Formatter):
    """Fills the places of a template: numbers as a language writes them, phrases in that language."""

    def __init__(self, language: Language) -> None:
        self._language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, int | float):
            return self._language.number(value, format_spec)
        if isinstance(value, Mapping):
            return self._language(value["template"], **value["values"])
        return format(value, format_spec)


def _data(part: Mapping[str, Any], key: str) -> Any:
    known = part.get("messages")
    return known.get(key) if isinstance(known, Mapping) else None


ENGLISH = Language("en")
LANGUAGES = {
    "en": ENGLISH,
    "es": Language("es", SPANISH, str.maketrans({",": "\u202f", ".": ",", "%": " %"})),
}


def language(code: str) -> Language:
    """The language of a code.

    Raises:
        RescoldoError: there is none.
    """
    if code not in LANGUAGES:
        raise RescoldoError(f"invalid value {code!r}: expected {' or '.join(LANGUAGES)}", where="--lang")
    return LANGUAGES[code]
