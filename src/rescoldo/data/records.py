"""Reading JSON Lines or one JSON array. Each line (element) becomes a record or a list of faults, and everything is
read with size limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rescoldo.data.foreign import refuse_foreign, whole_object, wrapped, wrapper
from rescoldo.errors import RescoldoError
from rescoldo.files import quote
from rescoldo.invocation import program
from rescoldo.role import DEFAULT, Fault, Role, get_role
from rescoldo.role.fault import errors
from rescoldo.role.record import Record
from rescoldo.role.role import FOREIGN

MAX_LINE_BYTES = 4 << 20
MAX_ARRAY_BYTES = 1 << 30
MAX_NUMBER_DIGITS = 300
TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".text")  # of documents: see data.text
SHOWN = 5  # faults that an error message lists
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # finds where values end


@dataclass
class Line:
    """One line that is not blank, or one element of an array.

    Attributes:
        raw: the line's bytes in the file, without line ends (truncated if the line is too long).
        value: the JSON object; None if the line is not a JSON object.
        faults: what is wrong with the line as JSON: not an object, repeated keys, NaN, invalid characters.
    """

    number: int
    raw: bytes
    value: dict[str, Any] | None
    faults: list[Fault]


class _BadJsonError(ValueError):
    pass


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a JSON Lines file without the blank ones, or the elements of a JSON array, which count as lines.

    An element has the number of the line that it begins on. If several begin on one line, elements are counted instead.

    Raises:
        RescoldoError: the file is missing, a directory, not readable or not text; the array is damaged; or one object
            spans several lines.
    """
    try:
        if path.is_dir():
            raise RescoldoError(
                "is a directory, not a JSON Lines file", where=str(path), fix="name the .jsonl file in it"
            )
        with open(path, "rb") as file:
            refuse_foreign(path, file.peek(4096))
            yield from lines_in(file, path)
    except FileNotFoundError:
        raise RescoldoError("there is no such file", where=str(path), fix="check the path") from None
    except OSError as error:
        raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def lines_in(file: IO[bytes], path: Path) -> Iterator[Line]:
    """`read_lines` for an open file in UTF-8, which must have `peek`; `path` names it in messages.

    Raises:
        RescoldoError: see read_lines.
        OSError: from the system.
    """
    if file.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):  # type: ignore[attr-defined]
        yield from _elements(path, file)
        return
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        too_long = len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n")
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if too_long:
            while (more := file.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
                pass
            yield _too_long(path, number, raw)
        elif raw.strip() == b"{":
            raise whole_object(path, number)
        elif raw.strip():
            line = parse_line(path, number, raw.rstrip(b"\r\n"))
            key = wrapper(line.value) if number == 1 and line.value else ""
            if key and line.value and not file.peek(1):  # type: ignore[attr-defined]  # the only line
                raise wrapped(path, key, len(line.value[key]))
            yield line


def _elements(path: Path, file: IO[bytes]) -> Iterator[Line]:
    """The elements of a JSON array, each parsed like a line; this function only finds where they begin and end."""
    content = file.read(MAX_ARRAY_BYTES + 1)
    if len(content) > MAX_ARRAY_BYTES:
        what, fix = f"a JSON array of more than {MAX_ARRAY_BYTES >> 30} GiB", f"jq -c '.[]' {quote(path)} > lines.jsonl"
        raise RescoldoError(what, where=str(path), fix=fix)
    text = content.decode("utf-8-sig", "surrogateescape")  # invalid UTF-8 is reported with its element
    try:
        spans = list(_spans(text))
    except json.JSONDecodeError as error:
        what = f"the JSON array is damaged: {error.msg} (column {error.colno})"
        raise RescoldoError(what, where=f"{path}:{error.lineno}", fix="correct it there") from None
    numbers: list[int] = []
    number, before = 1, 0
    for start, _ in spans:
        number += text.count("\n", before, start)
        numbers.append(number)
        before = start
    if len(set(numbers)) < len(numbers):  # several elements begin on one line
        numbers = list(range(1, len(numbers) + 1))
    for (start, end), number in zip(spans, numbers, strict=True):
        raw = text[start:end].encode("utf-8", "surrogateescape")
        if len(raw) > MAX_LINE_BYTES:
            yield _too_long(path, number, raw[:MAX_LINE_BYTES])
        else:
            yield parse_line(path, number, b" ".join(part.strip() for part in raw.splitlines()))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """The begin and end of each element of a JSON array, in characters.

    Raises:
        json.JSONDecodeError: the array is damaged, or something follows it.
    """
    at = _skip(text, text.index("[") + 1)
    more = not text.startswith("]", at)
    while more:
        try:
            end = _DECODER.raw_decode(text, at)[1]
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, at) from None
        yield at, end
        at = _skip(text, end)
        more = text.startswith(",", at)
        at = _skip(text, at + 1) if more else at
    if not text.startswith("]", at):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    at = _skip(text, at + 1)
    if at < len(text):
        raise json.JSONDecodeError("Extra data after the array", text, at)


def _skip(text: str, at: int) -> int:
    """The position after the white space that begins at `at`."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _too_long(path: Path, number: int, raw: bytes) -> Line:
    what = f"is longer than {MAX_LINE_BYTES >> 20} MiB"
    return Line(number, raw, None, [Fault(str(path), number, "", "line-length", what)])


def parse_line(path: Path, number: int, raw: bytes) -> Line:
    """Parse a line; messages name it as line `number` of `path`."""
    faults: list[Fault] = []

    def fault(code: str, what: str, field: str = "") -> Fault:
        return Fault(str(path), number, field, code, what)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    faults.append(fault("repeated-key", f"the key {key[:60]!r} is repeated in one object", key[:60]))
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
        json.dumps(value, ensure_ascii=False).encode()  # fails for "\ud800", which is valid JSON but not valid text
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
        return Line(number, raw, None, [fault("json", f"is {kind}: expected a JSON object")])
    return Line(number, raw, value, faults)


def read_records(path: Path | str, role: Role | None = None, *, answers: bool = True) -> list[Record]:
    """All records of a dataset, checked.

    Args:
        path: JSON Lines in UTF-8 (a byte order mark is accepted).
        role: defines what a valid record is; the default is ba.
        answers: whether the records need an answer (for training), or only the input (for generation).

    Raises:
        RescoldoError: one error that names file, line and field of the first faults.
    """
    path, role = Path(path), role or get_role()
    if is_prose(path):
        _refuse_foreign(path)
        raise RescoldoError(
            "is plain text: expected records with questions and answers, which a role can read and score",
            where=str(path),
            fix=f"`{program()} train` learns it (--train or --text), and with it as --val reports its perplexity",
        )
    records: list[Record] = []
    faults: list[Fault] = []
    for line in read_lines(path):
        found, record = list(line.faults), None
        if line.value is not None:
            faulty, record = role.checked(line.value, str(path), line.number, answers=answers)
            found += errors(faulty)
        faults += found
        if record is not None and not found:
            records.append(record)
    if faults:
        fix = fix_command(path, role) if any(fault.fixable for fault in faults) else ""
        if faults[0].code == FOREIGN:
            fix = "the same command with --role generic"
        raise refusal(faults, fix or f"{program()} data audit {quote(path)}{flag(role)}")
    if not records:
        raise RescoldoError("holds no records", where=str(path), fix="pass a JSON Lines file with one example a line")
    return records


def is_prose(path: Path) -> bool:
    """Whether a file is prose, judging by its name and because it does not begin like JSON."""
    if path.suffix.lower() not in TEXT_SUFFIXES or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return False
    return not head.startswith((b"{", b"[{"))


def _refuse_foreign(path: Path) -> None:
    with open(path, "rb") as file:
        refuse_foreign(path, file.peek(4096))


def fix_command(path: Path, role: Role, *, drop: bool = False) -> str:
    """The command that fixes a file; with `drop` it also removes the lines that cannot be fixed."""
    suffix = ".jsonl" if path.suffix == ".json" else path.suffix  # an array becomes lines
    output = quote(path.with_name(path.stem + "_fixed" + suffix))
    return f"{program()} data fix {quote(path)} -o {output}{' --drop' if drop else ''}{flag(role)}"


def flag(role: Role) -> str:
    """The --role option for a printed command; "" for the default role."""
    return "" if role.option == DEFAULT else f" --role {quote(role.option)}"


def refusal(faults: list[Fault], fix: str) -> RescoldoError:
    """One error that names the first of a file's faults and lists some others."""
    first, *others = faults
    lines = len({fault.line for fault in faults})
    what = first.what
    if others:
        shown = [f"  {fault.where}: {fault.what}" for fault in others[: SHOWN - 1]]
        if len(faults) > SHOWN:
            shown.append(f"  … and {len(faults) - SHOWN} more")
        what += f"\n{len(faults)} faults in {lines} line{'s' if lines > 1 else ''}; also\n" + "\n".join(shown)
    return RescoldoError(what, where=first.where, fix=fix)
