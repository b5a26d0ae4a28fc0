"""Where in an answer's text the points were lost: each note of the score at the line that it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

_KEY = re.compile(r"([A-Za-z_]\w*):")
_ITEM = re.compile(r"\s*-(\s|$)")
_MAX_LINES, _MAX_TEXT = 2000, 200_000  # lines and characters of an answer that are shown


@dataclass
class Line:
    """A line of an answer and the notes on it."""

    text: str
    notes: list[str] = field(default_factory=list)


def mark_lines(
    text: str, notes: Sequence[str], places: Sequence[Sequence[str | int]] = ()
) -> tuple[list[Line], list[str]]:
    """The lines of a text with the notes that belong to them, and the notes that belong to none.

    Args:
        places: where each note belongs, see role.metrics.Place; [] or missing where that is not known.
    """
    lines = [Line(line) for line in text[:_MAX_TEXT].split("\n")[:_MAX_LINES]]
    keys, items = _outline(lines)
    rest = []
    for note, place in zip_longest(notes, places[: len(notes)], fillvalue=()):
        number = _line(place, lines, keys, items)
        if number is None:
            rest.append(str(note))
        else:
            lines[number].notes.append(str(note))
    return lines, rest


def _outline(lines: Sequence[Line]) -> tuple[dict[str, int], dict[tuple[str, int], list[int]]]:
    """Key → its line; (key, index) → the lines of that item in the list below the key."""
    keys: dict[str, int] = {}
    items: dict[tuple[str, int], list[int]] = {}
    key, index = "", -1
    for number, line in enumerate(lines):
        found = _KEY.match(line.text)
        if found:
            key, index = found[1], -1
            keys.setdefault(key, number)
        elif _ITEM.match(line.text):
            index += 1
        if index >= 0:
            items.setdefault((key, index), []).append(number)
    return keys, items


def _line(
    place: Sequence[str | int],
    lines: Sequence[Line],
    keys: dict[str, int],
    items: dict[tuple[str, int], list[int]],
) -> int | None:
    """The index of the line that a place is on, None where it cannot be found."""
    if not place:
        return None
    first, *rest = place
    if isinstance(first, int):
        if first < 0:
            return max((i for i, line in enumerate(lines) if line.text.strip()), default=0)
        return first - 1 if 0 < first <= len(lines) else None
    if not rest or not isinstance(rest[0], int):
        return keys.get(first)
    numbers = items.get((first, rest[0]), [])
    named = re.compile(rf"\b{re.escape(str(rest[1]))}\b['\"]?:") if len(rest) > 1 else None
    exact = [number for number in numbers if named and named.search(lines[number].text)]
    return next(iter(exact or numbers), keys.get(first))
