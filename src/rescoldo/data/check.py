"""What a record must look like (the contract's section 2), and what is wrong with one that does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rescoldo.role.ba import DESCRIPTION_LENGTH, LISTS, PRIORITIES, TITLE_LENGTH
from rescoldo.role.yaml_text import YamlRefusedError, parse_yaml

COUNTS = {"functional_requirements": (3, 8), "non_functional_requirements": (2, 5), "constraints": (2, 5)}
PRIORITY_WORDS = {
    **{name.lower(): name for name in PRIORITIES},
    **{"alta": "High", "alto": "High", "media": "Medium", "medio": "Medium", "baja": "Low", "bajo": "Low"},
}


@dataclass(frozen=True)
class Fault:
    """Something wrong in a dataset file.

    Attributes:
        field: path inside the record ("requirements.constraints[0].id"), "" for the line as a whole.
        code: its kind in a word, for programs.
        what: in words.
        fixable: `rescoldo data fix` mends it.
        level: "error" (training refuses the file, or the audit fails) or "warning" (worth a look).
    """

    file: str
    line: int
    field: str
    code: str
    what: str
    fixable: bool = False
    level: str = "error"

    @property
    def where(self) -> str:
        """file:line, field."""
        return f"{self.file}:{self.line}" + (f", {self.field}" if self.field else "")


def as_list(value: Any) -> list[Any] | None:
    """A list field as a list: itself, or the list that its YAML string holds; None if it is neither."""
    if isinstance(value, str):
        try:
            value = parse_yaml(value)
        except YamlRefusedError:
            return None
    return value if isinstance(value, list) else None


def normalise(record: dict[str, Any]) -> dict[str, Any]:
    """A copy of a record with its list fields as lists; the original is not changed."""
    requirements = dict(record["requirements"])
    for name in LISTS:
        if isinstance(requirements.get(name), str):
            requirements[name] = as_list(requirements[name])
    return {**record, "requirements": requirements}


def check_concept(record: dict[str, Any], file: str, line: int) -> list[Fault]:
    """The faults of a record's concept."""
    return [Fault(file, line, "concept", *found) for found in _text(record, "concept")]


def check_record(record: dict[str, Any], file: str, line: int) -> list[Fault]:
    """The faults of one record, by themselves: duplicates and the like are the audit's business."""
    faults = check_concept(record, file, line)
    requirements = record.get("requirements")
    if not isinstance(requirements, dict):
        what = "is missing" if "requirements" not in record else f"is {_kind(requirements)}, an object is wanted"
        return [*faults, Fault(file, line, "requirements", "requirements", what)]
    for name in ("title", "description"):
        faults += [Fault(file, line, f"requirements.{name}", *found) for found in _text(requirements, name)]
    more = [*_lengths(requirements), *(found for name in LISTS for found in _list(requirements, name))]
    for field, code, what, fixable, level in more:
        faults.append(Fault(file, line, f"requirements.{field}", code, what, fixable, level))
    return faults


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _text(holder: dict[str, Any], name: str) -> Iterator[tuple[str, str]]:
    value = holder.get(name)
    if name not in holder:
        yield "missing", "is missing"
    elif not isinstance(value, str):
        yield "type", f"is {_kind(value)}, text is wanted"
    elif not value.strip():
        yield "empty", "is empty"


def _lengths(requirements: dict[str, Any]) -> Iterator[tuple[str, str, str, bool, str]]:
    """Lengths that cost the answer points in the metric."""
    title, description = requirements.get("title"), requirements.get("description")
    least, most = TITLE_LENGTH
    if isinstance(title, str) and title.strip() and not least <= len(title.strip()) <= most:
        yield "title", "length", f"{len(title.strip())} characters, {least} to {most} wanted", False, "warning"
    if isinstance(description, str) and 0 < len(description.strip()) < DESCRIPTION_LENGTH:
        what = f"{len(description.strip())} characters, at least {DESCRIPTION_LENGTH} wanted"
        yield "description", "length", what, False, "warning"


def _list(requirements: dict[str, Any], name: str) -> Iterator[tuple[str, str, str, bool, str]]:
    """(field, code, what, fixable, level) of each fault of one of the three lists."""
    value = requirements.get(name)
    if name not in requirements:
        yield name, "missing", "is missing", False, "error"
        return
    items = as_list(value)
    if items is None:
        wanted = "a list is wanted" + (" (or YAML that holds one)" if isinstance(value, str) else "")
        yield name, "type", f"is {_kind(value)}, {wanted}", False, "error"
        return
    if isinstance(value, str):
        yield name, "yaml-string", "is a YAML string; it is read as a list", True, "warning"
    least, most = COUNTS[name]
    if not items:
        yield name, "empty", "is empty", False, "error"
    elif not least <= len(items) <= most:
        yield name, "count", f"{len(items)} items, {least} to {most} are usual", False, "warning"
    prefix, seen = LISTS[name], dict[str, int]()  # valid ID → index
    for index, item in enumerate(items):
        field = f"{name}[{index}]"
        if not isinstance(item, dict):
            yield field, "type", f"is {_kind(item)}, an object with id, description, priority is wanted", False, "error"
            continue
        for code, what in _text(item, "description"):
            yield f"{field}.description", code, what, False, "error"
        yield from _priority(item, field)
        identifier = item.get("id")
        if identifier is None or (isinstance(identifier, str) and not identifier.strip()):
            yield f"{field}.id", "id-missing", "is missing or empty", True, "error"
        elif not isinstance(identifier, str) or not re.fullmatch(prefix + "[0-9]{3}", identifier):
            shown = repr(identifier)[:40] if isinstance(identifier, str | int | float) else _kind(identifier)
            yield f"{field}.id", "id-format", f"is {shown}, {prefix} and three digits are wanted", True, "error"
        elif identifier in seen:
            what = f"{identifier} stands already in {name}[{seen[identifier]}]"
            yield f"{field}.id", "id-repeated", what, True, "error"
        else:
            seen[identifier] = index
    if len(seen) == len(items) and list(seen) != [f"{prefix}{number + 1:03d}" for number in range(len(items))]:
        yield name, "id-order", f"IDs do not count from {prefix}001 on", True, "warning"


def _priority(item: dict[str, Any], field: str) -> Iterator[tuple[str, str, str, bool, str]]:
    value = item.get("priority")
    if isinstance(value, str) and value in PRIORITIES:
        return
    fixable = isinstance(value, str) and value.strip().lower() in PRIORITY_WORDS
    if "priority" not in item:
        what = "is missing"
    else:
        shown = repr(value[:40]) if isinstance(value, str) else _kind(value)
        what = f"is {shown}, one of {', '.join(PRIORITIES)} is wanted"
    yield f"{field}.priority", "priority", what, fixable, "error"
