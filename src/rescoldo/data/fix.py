"""Mending what can be mended without guessing: IDs, priorities' spelling, lists as YAML strings, repeated examples."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescoldo.data.audit import answer_of
from rescoldo.data.check import PRIORITY_WORDS, Fault, as_list, check_record
from rescoldo.data.records import read_lines
from rescoldo.data.similar import same
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import write_atomic
from rescoldo.role.ba import LISTS


@dataclass(frozen=True)
class Change:
    """One thing that was mended, in words."""

    line: int
    field: str
    what: str


@dataclass
class Fixed:
    """The mended file.

    Attributes:
        content: its bytes; lines that needed nothing, or cannot be mended, stand as they were.
        left: errors that need a person.
    """

    content: bytes
    records: int = 0
    changes: list[Change] = field(default_factory=list)
    left: list[Fault] = field(default_factory=list)


def fix_file(path: Path) -> Fixed:
    """Mend a dataset file in memory.

    Raises:
        RescoldoError: the file cannot be read at all.
    """
    fixed = Fixed(b"")
    lines: list[bytes] = []
    first: dict[tuple[str, str], int] = {}
    for line in read_lines(path):
        if any(fault.code == "line-length" for fault in line.faults):
            raise RescoldoError(line.faults[0].what, where=f"{path}:{line.number}", fix="split or remove that line")
        fixed.left += line.faults
        if line.value is None or line.faults:
            lines.append(line.raw)
            continue
        record, changes = fix_record(line.value, line.number)
        concept = record.get("concept")
        key = (same(concept) if isinstance(concept, str) else "", answer_of(record))
        if all(key) and first.setdefault(key, line.number) != line.number:
            fixed.changes.append(Change(line.number, "", f"left out: the same example as line {first[key]}"))
            continue
        fixed.records += 1
        fixed.changes += changes
        fixed.left += [f for f in check_record(record, str(path), line.number) if f.level == "error"]
        lines.append(json.dumps(record, ensure_ascii=False).encode() if changes else line.raw)
    fixed.content = b"".join(line + b"\n" for line in lines)
    return fixed


def fix_record(record: dict[str, Any], line: int = 0) -> tuple[dict[str, Any], list[Change]]:
    """A mended copy of one record, and what was changed in it. Fixing it again changes nothing.

    IDs are counted anew in each list's order; a description that mentions one by name mentions the new one then, if the
    old was no other item's too.
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
                changes.append(Change(line, f"requirements.{name}", "YAML string turned into a list"))
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
            changes.append(Change(line, f"{where}.priority", f"{priority!r} → {word}"))
        before = item.get("id")
        if before == identifier:
            continue
        rest = {key: value for key, value in item.items() if key != "id"}
        item.clear()
        item.update({"id": identifier, **rest})
        shown = "no ID" if before in (None, "") else str(before)[:40]
        changes.append(Change(line, f"{where}.id", f"{shown} → {identifier}"))
        if isinstance(before, str) and times[before] == 1 and re.fullmatch(r"[A-Za-z]+[-_ ]?[0-9]+", before):
            renamed[before] = identifier
    _rename(requirements, renamed, changes, line)
    return record, changes


def _rename(requirements: dict[str, Any], renamed: dict[str, str], changes: list[Change], line: int) -> None:
    """Let descriptions that mention an ID by name mention the new one."""
    if not renamed:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(renamed, key=len, reverse=True))) + r")\b")

    def mend(holder: dict[str, Any], where: str) -> None:
        text = holder.get("description")
        if isinstance(text, str):
            new = pattern.sub(lambda match: renamed[match[1]], text)
            if new != text:
                holder["description"] = new
                changes.append(Change(line, f"{where}.description", "IDs it mentions renamed too"))

    mend(requirements, "requirements")
    for name in LISTS:
        items = requirements.get(name)
        for index, item in enumerate(items if isinstance(items, list) else []):
            if isinstance(item, dict):
                mend(item, f"requirements.{name}[{index}]")


def write_fixed(fixed: Fixed, source: Path, output: Path | None, *, in_place: bool = False) -> Path:
    """Write the mended file: to a new path, or in place with the old version kept as NAME.bak. Returns the path.

    Raises:
        RescoldoError: the output (or the .bak) exists already, or cannot be written.
    """
    if (output is None) == (not in_place):
        raise RescoldoError("say where to write", where="--output", fix="-o NEW_FILE, or --in-place")
    source = source.resolve()  # the file itself, not a link to it
    target = source if output is None else output
    try:
        if in_place:
            backup = source.with_name(source.name + ".bak")
            refuse_existing(backup)
            original = source.read_bytes()
            write_bytes(backup, original)
        else:
            refuse_existing(target)
        write_bytes(target, fixed.content)
    except OSError as error:
        raise RescoldoError(
            f"cannot be written: {error.strerror or error}", where=str(target), exit_code=EXIT_FAILURE
        ) from None
    return target


def refuse_existing(path: Path) -> None:
    """Stop before something is overwritten.

    Raises:
        RescoldoError: `path` exists.
    """
    if path.exists() or path.is_symlink():
        raise RescoldoError(
            "exists already and is not overwritten", where=str(path), fix="choose another name, or move it"
        )


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically.

    Raises:
        OSError: as the system says; nothing is left then.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)
