"""Where in an answer's text the points were lost: each note of the score at the line that it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_KEY = re.compile(r"([A-Za-z_]\w*):")
_ITEM = re.compile(r"\s*-(\s|$)")
_PLACE = re.compile(r"\b(\w+)\[(\d+)\]")
_TWICE = re.compile(r"(\S+) stands \d+ times in (\w+)")
_LINE = re.compile(r"\(line (\d+)\)")
_MAX_LINES, _MAX_TEXT = 2000, 200_000  # lines and characters of an answer that are shown


@dataclass
class Line:
    """A line of an answer and the notes on it."""

    text: str
    notes: list[str] = field(default_factory=list)


def mark_lines(text: str, notes: Sequence[str]) -> tuple[list[Line], list[str]]:
    """The lines of a text with the notes that belong to them, and the notes that belong to none."""
    lines = [Line(line) for line in text[:_MAX_TEXT].split("\n")[:_MAX_LINES]]
    keys, items = _outline(lines)
    rest = []
    for note in notes:
        places = _places(note, lines, keys, items)
        for place in places:
            lines[place].notes.append(note)
        if not places:
            rest.append(note)
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


def _places(
    note: str, lines: Sequence[Line], keys: dict[str, int], items: dict[tuple[str, int], list[int]]
) -> list[int]:
    """The lines that a note is about, [] where it says none."""
    at = _LINE.search(note)
    if at and 0 < int(at[1]) <= len(lines):
        return [int(at[1]) - 1]
    if note.startswith("cut off"):
        return [max((i for i, line in enumerate(lines) if line.text.strip()), default=0)]
    twice = _TWICE.search(note)
    if twice:
        own = [number for (key, _), numbers in items.items() if key == twice[2] for number in numbers]
        return [number for number in own if re.search(rf"\bid:\s*['\"]?{re.escape(twice[1])}\b", lines[number].text)]
    place = _PLACE.search(note)
    if place:
        numbers = items.get((place[1], int(place[2])), [])
        word = "id" if note.startswith("id_format") else "priority" if "priority" in note else ""
        exact = [number for number in numbers if word and re.search(rf"\b{word}:", lines[number].text)]
        return (exact or numbers)[:1]
    name = note.partition(":")[0]
    return [keys[name]] if name in keys else []
