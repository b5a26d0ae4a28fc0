"""Messages that can be shown in another language: English texts that carry their template and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

Value = str | int | float
"""A value of a template: a text, another phrase, or a number, which is written as the template's format specification
says."""


class Phrase(str):
    """An English text of this program, made from a template.

    It is a str for all who need a text (messages, exceptions, JSON). A report in another language is made from the
    template and the values (`json`), so that no code has to parse the text.

    Args:
        template: in the syntax of str.format, with named fields: "{k} of {n} answers", "{share:.1%}".
        values: for each field.
    """

    template: str
    values: Mapping[str, Value]

    def __new__(cls, template: str, /, **values: Value) -> Phrase:
        self = super().__new__(cls, template.format_map(values))
        self.template, self.values = template, values
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Value]]:
        """For copy and pickle."""
        return (self.template,), dict(self.values)

    @property
    def json(self) -> dict[str, Any]:
        """{"template", "values": {name: a number, a text, or such an object}}."""
        values = {name: value.json if isinstance(value, Phrase) else value for name, value in self.values.items()}
        return {"template": self.template, "values": values}


def as_data(texts: Iterable[str]) -> list[dict[str, Any] | None]:
    """Phrase.json of each text; None for a text that is no phrase, such as a note of a role's own metric."""
    return [text.json if isinstance(text, Phrase) else None for text in texts]


def listed(parts: Iterable[str]) -> str:
    """a, b, c."""
    return reduce(lambda first, last: Phrase("{first}, {last}", first=first, last=last), parts)


def either(parts: Iterable[str]) -> str:
    """a or b or c."""
    return reduce(lambda first, last: Phrase("{first} or {last}", first=first, last=last), parts)
