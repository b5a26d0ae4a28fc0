"""Messages that can be shown in another language: English texts that know the template and the values they are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

Value = str | int | float
"""What stands in a template's place: a text as it is, another phrase, or a number, written as the template's format
specification says."""


class Phrase(str):
    """An English text of this program, made from a template.

    It is the text wherever a text is wanted (messages, exceptions, JSON). What shows it in another language takes the
    template and the values (`json`), so nothing ever has to find them in the text again.

    Args:
        template: with places as in str.format: "{k} of {n} answers", "{share:.1%}".
        values: for each place.
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
    """Phrase.json of each text; None for one that is no phrase, such as a note of a role's own metric."""
    return [text.json if isinstance(text, Phrase) else None for text in texts]


def listed(parts: Iterable[str]) -> str:
    """a, b, c."""
    return reduce(lambda first, last: Phrase("{first}, {last}", first=first, last=last), parts)


def either(parts: Iterable[str]) -> str:
    """a or b or c."""
    return reduce(lambda first, last: Phrase("{first} or {last}", first=first, last=last), parts)
