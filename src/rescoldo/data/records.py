"""Reading JSON Lines: every line is either a record or a list of faults, and nothing is ever read without bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.role import DEFAULT, Fault, Role, get_role

MAX_LINE_BYTES = 4 << 20
MAX_NUMBER_DIGITS = 300
SHOWN = 5  # faults that an error message lists


class Record(dict[str, Any]):
    """A record of the dataset as it stands in the file (unknown keys kept), read by its role (Role.read).

    Attributes:
        line: its line in the file, from 1.
    """

    line: int = 0


@dataclass
class Line:
    """One line that is not blank.

    Attributes:
        raw: its bytes as they stand in the file, without the line's end (cut off where the line is too long).
        value: the JSON object, None if it is none.
        faults: why not, or what is wrong inside (JSON level only: repeated keys, NaN, invalid characters).
    """

    number: int
    raw: bytes
    value: dict[str, Any] | None
    faults: list[Fault]


class _BadJsonError(ValueError):
    pass


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a JSON Lines file, blank ones left out.

    Raises:
        RescoldoError: the file is missing, a directory, not readable, or no text.
    """
    try:
        if path.is_dir():
            raise RescoldoError(
                "is a directory, not a JSON Lines file", where=str(path), fix="name the .jsonl file in it"
            )
        with open(path, "rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                too_long = len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n")
                if number == 1:
                    if b"\0" in raw[:4096] or raw.startswith((b"\x1f\x8b", b"PK\x03\x04")):
                        raise RescoldoError("is not a text file", where=str(path), fix="pass JSON Lines in UTF-8")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if too_long:
                    while (more := file.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
                        pass
                    what = f"line is longer than {MAX_LINE_BYTES >> 20} MiB"
                    yield Line(number, raw, None, [Fault(str(path), number, "", "line-length", what)])
                elif raw.strip():
                    yield _parse(path, number, raw.rstrip(b"\r\n"))
    except FileNotFoundError:
        raise RescoldoError("there is no such file", where=str(path), fix="check the path") from None
    except OSError as error:
        raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _parse(path: Path, number: int, raw: bytes) -> Line:
    faults: list[Fault] = []

    def fault(code: str, what: str, field: str = "") -> Fault:
        return Fault(str(path), number, field, code, what)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    faults.append(fault("repeated-key", f"the key {key[:60]!r} stands twice in one object", key[:60]))
                seen.add(key)
        return result

    def constant(name: str) -> Any:
        raise _BadJsonError(f"{name} is not a JSON value")

    def integer(digits: str) -> int:
        if len(digits) > MAX_NUMBER_DIGITS:
            raise _BadJsonError(f"a number of {len(digits)} digits")
        return int(digits)

    def decimal(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            raise _BadJsonError(f"the number {digits[:20]} is out of range")
        return value

    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_int=integer, parse_float=decimal
        )
        json.dumps(value, ensure_ascii=False).encode()  # "\ud800" is JSON, but no text that can be written
    except UnicodeDecodeError as error:
        return Line(number, raw, None, [fault("encoding", f"not UTF-8 at byte {error.start + 1} of the line")])
    except UnicodeEncodeError:
        return Line(number, raw, None, [fault("encoding", "holds half of a surrogate pair (\\ud800 … \\udfff)")])
    except json.JSONDecodeError as error:
        return Line(number, raw, None, [fault("json", f"not JSON: {error.msg} (column {error.colno})")])
    except _BadJsonError as error:
        return Line(number, raw, None, [fault("json", str(error))])
    except RecursionError:
        return Line(number, raw, None, [fault("json", "nested too deeply")])
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        return Line(number, raw, None, [fault("json", f"a JSON object is wanted, this is {kind}")])
    return Line(number, raw, value, faults)


def read_records(path: Path | str, role: Role | None = None, *, answers: bool = True) -> list[Record]:
    """All records of a dataset, checked.

    Args:
        path: JSON Lines, UTF-8 (a byte order mark is tolerated).
        role: what a record must look like; ba where it is not given.
        answers: whether the records must have an answer (for training), or only what is asked (to be answered).

    Raises:
        RescoldoError: one error that names file, line and field of the first faults.
    """
    path, role = Path(path), role or get_role()
    records: list[Record] = []
    faults: list[Fault] = []
    for line in read_lines(path):
        found = list(line.faults)
        if line.value is not None:
            faulty = role.check(line.value, str(path), line.number, answers=answers)
            found += [fault for fault in faulty if fault.level == "error"]
        faults += found
        if line.value is not None and not found:
            record = Record(role.read(line.value, answers=answers))
            record.line = line.number
            records.append(record)
    if faults:
        raise _refusal(path, faults, role)
    if not records:
        raise RescoldoError("holds no records", where=str(path), fix="pass a JSON Lines file with one example a line")
    return records


def _refusal(path: Path, faults: list[Fault], role: Role) -> RescoldoError:
    first, *others = faults
    lines = len({fault.line for fault in faults})
    what = first.what
    if others:
        shown = [f"  {fault.where}: {fault.what}" for fault in others[: SHOWN - 1]]
        if len(faults) > SHOWN:
            shown.append(f"  … and {len(faults) - SHOWN} more")
        what += f"\n{len(faults)} faults in {lines} line{'s' if lines > 1 else ''}; also\n" + "\n".join(shown)
    if any(fault.fixable for fault in faults):
        fix = f"rescoldo data fix {path} -o {path.with_name(path.stem + '_fixed' + path.suffix)}"
    else:
        fix = f"rescoldo data audit {path}"
    if role.option != DEFAULT:
        fix += f" --role {role.option}"
    return RescoldoError(what, where=first.where, fix=fix)
