"""Fixing what can be fixed without guessing: faults for which the role has a rule, and repeated examples."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from rescoldo.data.audit import answer_of, checked, key_of
from rescoldo.data.records import flag, read_lines
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import quote, write_atomic
from rescoldo.invocation import program
from rescoldo.role import Fault, Role, get_role
from rescoldo.role.fault import errors


@dataclass(frozen=True)
class Change:
    """One fix; `what` describes it for people."""

    line: int
    field: str
    what: str


@dataclass
class Fixed:
    """The result of fixing a file.

    Attributes:
        content: the new bytes; lines without faults, or that cannot be fixed, are unchanged.
        left: errors that only a person can fix.
        dropped: the fault of each line that was removed because of it (with drop=True).
    """

    content: bytes
    records: int = 0
    changes: list[Change] = field(default_factory=list)
    left: list[Fault] = field(default_factory=list)
    dropped: list[Fault] = field(default_factory=list)


def fix_file(path: Path, role: Role | None = None, *, drop: bool = False) -> Fixed:
    """Fix a dataset file in memory. The default `role` is ba.

    Args:
        drop: remove the lines that cannot be fixed, instead of keeping them unchanged.

    Raises:
        RescoldoError: the file cannot be read, or `drop` would remove every line.
    """
    role = role or get_role()
    fixed = Fixed(b"")
    lines: list[bytes] = []
    first: dict[tuple[str, str], int] = {}
    for line in read_lines(path):
        if drop and line.faults:
            fixed.dropped.append(line.faults[0])
            continue
        if any(fault.code == "line-length" for fault in line.faults):
            raise RescoldoError(line.faults[0].what, where=f"{path}:{line.number}", fix="split or remove that line")
        fixed.left += line.faults
        if line.value is None or line.faults:
            lines.append(line.raw)
            continue
        record, mended = role.mend(line.value, f"{path}:{line.number}")
        changes = [Change(line.number, *change) for change in mended]
        faults, whole = checked(role, record, str(path), line.number)
        wrong = errors(faults)
        if drop and wrong:
            fixed.dropped.append(wrong[0])
            continue
        key = ("", "") if whole is None else (key_of(role, whole), answer_of(role, whole))
        if all(key) and first.setdefault(key, line.number) != line.number:
            fixed.changes.append(Change(line.number, "", f"left out: the same example as line {first[key]}"))
            continue
        fixed.records += 1
        fixed.changes += changes
        fixed.left += wrong
        lines.append(json.dumps(record, ensure_ascii=False).encode() if changes else line.raw)
    if fixed.dropped and not lines:
        first_fault = fixed.dropped[0]
        raise RescoldoError(
            f"no line is left: all {len(fixed.dropped)} have faults ({first_fault.what})",
            where=first_fault.where,
            fix=f"{program()} data audit {quote(path)}{flag(role)} names them; is it another role's file (--role)?",
        )
    fixed.content = b"".join(line + b"\n" for line in lines)
    return fixed


def write_fixed(fixed: Fixed, source: Path, output: Path | None, *, in_place: bool = False) -> Path:
    """Write the fixed file: to a new path, or in place with the old version kept as NAME.bak. Returns the path.

    Raises:
        RescoldoError: the output (or the .bak) exists already, or it cannot be written.
    """
    if (output is None) == (not in_place):
        raise RescoldoError("say where to write", where="--output", fix="-o NEW_FILE, or --in-place")
    source = source.resolve()  # write the file itself, not a link to it
    target = source if output is None else output
    backup = source.with_name(source.name + ".bak") if in_place else None
    refuse_existing(backup or target)
    try:
        if backup is not None:
            write_bytes(backup, source.read_bytes(), like=source)
        write_bytes(target, fixed.content, like=backup)
    except OSError as error:
        if backup is not None:  # the file is unchanged, and a left-over backup would block the next attempt
            backup.unlink(missing_ok=True)
        raise unwritable(target, error) from None
    return target


def refuse_existing(path: Path) -> None:
    """Raise before something would be overwritten.

    Raises:
        RescoldoError: `path` exists.
    """
    if path.exists() or path.is_symlink():
        raise RescoldoError(
            "exists already and is not overwritten", where=str(path), fix="choose another name, or move it"
        )


def unwritable(path: Path, error: OSError) -> RescoldoError:
    """The error for a path that the system does not let us write."""
    what = f"cannot be written: {error.strerror or error}"
    fix = f"df -h {quote(path.parent)} shows the room there; or name a path that you may write"
    return RescoldoError(what, where=str(path), fix=fix, exit_code=EXIT_FAILURE)


def write_bytes(path: Path, content: bytes, like: Path | None = None) -> None:
    """Write `content` to `path` atomically, with the permissions of the file `like`, if given.

    Raises:
        OSError: from the system; in this case no file is left behind.
    """

    def write(temporary: Path) -> None:
        if like is not None:
            temporary.touch(0o600)
        temporary.write_bytes(content)
        if like is not None:
            shutil.copymode(like, temporary)

    write_atomic(path, write)
