"""The languages of reports: a table of messages, and numbers as the language writes them.

A document's own messages (reasons, warnings, notes) are English in the JSON. For another language they are recognised
by the templates of the table, so that documents of any age can be shown in it. What no template fits, such as the notes
of a role's own metric, stays as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.evaluation.spanish import MESSAGES, SPANISH

_PLACE = re.compile(r"\{(\w+)\}")
_PERCENT = re.compile(r"(?<![\w.])([+-]?\d+)(?:\.(\d+))?%")
_NUMBER = re.compile(r"[+-]?[\d,]+(?:\.\d+)?")


@dataclass(frozen=True)
class Language:
    """How a report speaks. Calling it with an English template and values gives the text.

    Attributes:
        texts: English template → the language's, of all texts; empty for English itself.
        messages: those of them that are recognised in a document.
    """

    code: str
    texts: dict[str, str] = field(default_factory=dict, repr=False)
    messages: dict[str, str] = field(default_factory=dict, repr=False)

    def __hash__(self) -> int:
        """By the code: there is one of each."""
        return hash(self.code)

    def __call__(self, template: str, **values: Any) -> str:
        """A text of the program's own.

        Args:
            values: texts as they are to stand there; numbers are made by `percent`, `points` and `number`.

        Raises:
            KeyError: the table does not have the template.
        """
        return (self.texts[template] if self.texts else template).format_map(values)

    def number(self, value: float, spec: str = "d") -> str:
        """A number."""
        return self._figures(format(value, spec))

    def percent(self, value: float, decimals: int = 0) -> str:
        """A share as a percentage."""
        return self._figures(f"{value:.{decimals}%}")

    def points(self, value: float) -> str:
        """A difference of shares in points of 100, with its sign."""
        return self._figures(f"{100 * value:+.1f}")

    def cell(self, text: str) -> str:
        """A table's cell that was made in English: a number, or words with numbers."""
        return self._value(text)

    def listed(self, parts: list[str]) -> str:
        """a, b and c."""
        if len(parts) < 2:
            return "".join(parts)
        return self("{first} and {last}", first=", ".join(parts[:-1]), last=parts[-1])

    def message(self, text: str) -> str:
        """A message that was made in English."""
        return _translated(self, text) if self.messages else text

    def known(self, text: str) -> bool:
        """Whether a message that was made in English is one of the table's."""
        return not self.messages or self._match(text) is not None

    def _figures(self, text: str) -> str:
        if not self.messages:
            return text
        text = _PERCENT.sub(lambda match: f"{match[1]}{',' + match[2] if match[2] else ''} %", text)
        if _NUMBER.fullmatch(text):
            return text.replace(",", "\u202f").replace(".", ",")
        return text

    def _value(self, text: str) -> str:
        """What stands in a message's place: a message itself, a list of them, a number, or a name."""
        if not self.messages:
            return text
        if self._match(text) is not None:
            return _translated(self, text)
        for mark in ("; ", ", ", ": ", " / ", " … "):
            if mark in text:
                return mark.join(map(self._value, text.split(mark)))
        return self._figures(text)

    def _match(self, text: str) -> tuple[str, dict[str, str]] | None:
        for pattern, instead in self._patterns:
            found = pattern.fullmatch(text)
            if found:
                return instead, found.groupdict()
        return None

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        """The templates as patterns: first what joins sentences, then those with the most text of their own."""
        ordered = sorted(self.messages, key=lambda text: ("} But {" not in text, -len(_PLACE.sub("", text))))
        return [(_pattern(template), self.messages[template]) for template in ordered]


def _pattern(template: str) -> re.Pattern[str]:
    parts, seen = [], set()
    for place, text in enumerate(_PLACE.split(template)):
        if place % 2 == 0:
            parts.append(re.escape(text))
        elif text in seen:
            parts.append(f"(?P={text})")
        else:
            seen.add(text)
            parts.append(f"(?P<{text}>{_NUMBERS if text.startswith('n_') else '.+?'})")
    return re.compile("".join(parts), re.DOTALL)


_NUMBERS = r"[+-]?[\d.,]+%?"


@lru_cache(maxsize=10_000)
def _translated(language: Language, text: str) -> str:
    found = language._match(text)
    if found is None:
        return text
    instead, values = found
    return instead.format_map({name: language._value(value) for name, value in values.items()})


ENGLISH = Language("en")
LANGUAGES = {"en": ENGLISH, "es": Language("es", SPANISH, MESSAGES)}


def language(code: str) -> Language:
    """The language of a code.

    Raises:
        RescoldoError: there is none.
    """
    if code not in LANGUAGES:
        raise RescoldoError(f"invalid value {code!r}: expected {' or '.join(LANGUAGES)}", where="--lang")
    return LANGUAGES[code]
