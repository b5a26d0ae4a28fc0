"""The Business Analyst's records: checking and correcting them."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rescoldo.role.ba import DESCRIPTION_LENGTH, LISTS, PRIORITIES, TITLE_LENGTH
from rescoldo.role.fault import Finding, kind, text_findings
from rescoldo.role.yaml_text import YamlRefusedError, parse_yaml

Change = tuple[str, str]  # the corrected field, and a description
COUNTS = {"functional_requirements": (3, 8), "non_functional_requirements": (2, 5), "constraints": (2, 5)}
PRIORITY_WORDS = {
    **{name.lower(): name for name in PRIORITIES},
    **{"alta": "High", "alto": "High", "media": "Medium", "medio": "Medium", "baja": "Low", "bajo": "Low"},
}


def as_list(value: Any) -> list[Any] | None:
    """A list field as a list: the list itself, or the list in its YAML string; None if it is neither."""
    if isinstance(value, str):
        try:
            value = parse_yaml(value)
        except YamlRefusedError:
            return None
    return value if isinstance(value, list) else None


def check(record: dict[str, Any]) -> list[Finding]:
    """The faults of a record's requirements."""
    requirements = record.get("requirements")
    if not isinstance(requirements, dict):
        what = "is missing" if "requirements" not in record else f"is {kind(requirements)}: expected an object"
        return [Finding("requirements", "requirements", what)]
    found = [finding for name in ("title", "description") for finding in text_findings(requirements, name)]
    found += _lengths(requirements)
    found += [finding for name in LISTS for finding in _list(requirements, name)]
    return [finding._replace(field=f"requirements.{finding.field}") for finding in found]


def _lengths(requirements: dict[str, Any]) -> Iterator[Finding]:
    """Warnings about lengths for which the metric deducts points."""
    title, description = requirements.get("title"), requirements.get("description")
    least, most = TITLE_LENGTH
    if isinstance(title, str) and title.strip() and not least <= len(title.strip()) <= most:
        yield Finding("title", "length", f"{len(title.strip())} characters, {least} to {most} wanted", False, "warning")
    if isinstance(description, str) and 0 < len(description.strip()) < DESCRIPTION_LENGTH:
        what = f"{len(description.strip())} characters, at least {DESCRIPTION_LENGTH} wanted"
        yield Finding("description", "length", what, False, "warning")


def _list(requirements: dict[str, Any], name: str) -> Iterator[Finding]:
    """The faults in one of the three lists."""
    value = requirements.get(name)
    if name not in requirements:
        yield Finding(name, "missing", "is missing")
        return
    items = as_list(value)
    if items is None:
        wanted = "expected a list" + (" (or YAML that holds one)" if isinstance(value, str) else "")
        yield Finding(name, "type", f"is {kind(value)}: {wanted}")
        return
    if isinstance(value, str):
        yield Finding(name, "yaml-string", "is a YAML string; it is read as a list", True, "warning")
    least, most = COUNTS[name]
    if not items:
        yield Finding(name, "empty", "is empty")
    elif not least <= len(items) <= most:
        yield Finding(name, "count", f"{len(items)} items, {least} to {most} are usual", False, "warning")
    prefix, seen = LISTS[name], dict[str, int]()  # valid ID → index
    for index, item in enumerate(items):
        field = f"{name}[{index}]"
        if not isinstance(item, dict):
            yield Finding(field, "type", f"is {kind(item)}: expected an object with id, description, priority")
            continue
        yield from text_findings(item, "description", f"{field}.description")
        yield from _priority(item, field)
        identifier = item.get("id")
        if identifier is None or (isinstance(identifier, str) and not identifier.strip()):
            yield Finding(f"{field}.id", "id-missing", "is missing or empty", True)
        elif not isinstance(identifier, str) or not re.fullmatch(prefix + "[0-9]{3}", identifier):
            shown = repr(identifier)[:40] if isinstance(identifier, str | int | float) else kind(identifier)
            yield Finding(f"{field}.id", "id-format", f"is {shown}: expected {prefix} and three digits", True)
        elif identifier in seen:
            what = f"{identifier} is already used in {name}[{seen[identifier]}]"
            yield Finding(f"{field}.id", "id-repeated", what, True)
        else:
            seen[identifier] = index
    if len(seen) == len(items) and list(seen) != [f"{prefix}{number + 1:03d}" for number in range(len(items))]:
        yield Finding(name, "id-order", f"IDs are not numbered from {prefix}001 in order", True, "warning")


def _priority(item: dict[str, Any], field: str) -> Iterator[Finding]:
    value = item.get("priority")
    if isinstance(value, str) and value in PRIORITIES:
        return
    fixable = isinstance(value, str) and value.strip().lower() in PRIORITY_WORDS
    if "priority" not in item:
        what = "is missing"
    else:
        shown = repr(value[:40]) if isinstance(value, str) else kind(value)
        what = f"is {shown}: expected one of {', '.join(PRIORITIES)}"
    yield Finding(f"{field}.priority", "priority", what, fixable)


def mend(record: dict[str, Any]) -> tuple[dict[str, Any], list[Change]]:
    """A corrected copy of one record, and the changes. Correcting it again changes nothing.

    IDs are renumbered in each list's order; descriptions that mention a renumbered ID are updated, unless another item
    had the same old ID.
    """
    record = copy.deepcopy(record)
    changes: list[Change] = []
    requirements = record.get("requirements")
    if not isinstance(requirements, dict):
        return record, changes
    for name in LISTS:
        if isinstance(requirements.get(name), str):
            items = as_list(requirements[name])
            if items is not None:
                requirements[name] = items
                changes.append((f"requirements.{name}", "YAML string turned into a list"))
    entries = [
        (f"requirements.{name}[{index}]", f"{prefix}{index + 1:03d}", item)
        for name, prefix in LISTS.items()
        if isinstance(requirements.get(name), list)
        for index, item in enumerate(requirements[name])
        if isinstance(item, dict)
    ]
    times = Counter(item["id"] for _, _, item in entries if isinstance(item.get("id"), str))
    renamed: dict[str, str] = {}
    for where, identifier, item in entries:
        priority = item.get("priority")
        word = PRIORITY_WORDS.get(priority.strip().lower()) if isinstance(priority, str) else None
        if word and word != priority:
            item["priority"] = word
            changes.append((f"{where}.priority", f"{priority!r} → {word}"))
        before = item.get("id")
        if before == identifier:
            continue
        rest = {key: value for key, value in item.items() if key != "id"}
        item.clear()
        item.update({"id": identifier, **rest})
        shown = "no ID" if before in (None, "") else str(before)[:40]
        changes.append((f"{where}.id", f"{shown} → {identifier}"))
        if isinstance(before, str) and times[before] == 1 and re.fullmatch(r"[A-Za-z]+[-_ ]?[0-9]+", before):
            renamed[before] = identifier
    _rename(requirements, renamed, changes)
    return record, changes


def _rename(requirements: dict[str, Any], renamed: dict[str, str], changes: list[Change]) -> None:
    """Update descriptions that mention a renumbered ID."""
    if not renamed:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(renamed, key=len, reverse=True))) + r")\b")

    def mention(holder: dict[str, Any], where: str) -> None:
        text = holder.get("description")
        if isinstance(text, str):
            new = pattern.sub(lambda match: renamed[match[1]], text)
            if new != text:
                holder["description"] = new
                changes.append((f"{where}.description", "IDs it mentions renamed too"))

    mention(requirements, "requirements")
    for name in LISTS:
        items = requirements.get(name)
        for index, item in enumerate(items if isinstance(items, list) else []):
            if isinstance(item, dict):
                mention(item, f"requirements.{name}[{index}]")
