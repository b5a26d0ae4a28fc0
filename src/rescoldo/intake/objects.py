"""JSON Lines, JSON arrays and their common variants: one object around all records, or objects over several lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rescoldo.data.foreign import MAX_OBJECT_BYTES, wrapper
from rescoldo.data.records import MAX_LINE_BYTES, Line, lines_in, parse_line
from rescoldo.errors import RescoldoError
from rescoldo.files import quote
from rescoldo.intake.encoding import Encoding, as_text, as_utf8
from rescoldo.intake.source import Row, Share, Source
from rescoldo.intake.unpack import HEAD, Packed

_PIECE = 256 << 10  # characters of an array read at a time
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # finds where values end


def open_objects(content: Packed, encoding: Encoding) -> Source:
    """Open a file of JSON objects.

    Raises:
        RescoldoError: it holds no objects, or in an unknown layout.
    """
    with as_utf8(content.open, encoding) as (stream, _):
        is_array = stream.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    by_lines = not is_array and _by_lines(content, encoding)

    @contextmanager
    def read() -> Iterator[tuple[Iterator[Row], Share]]:
        if is_array:
            with as_text(content.open, encoding) as (text, share):
                yield _elements(text, content.path), share
            return
        with as_utf8(content.open, encoding) as (stream, share):
            if by_lines:
                yield (_row(line, content.path) for line in lines_in(stream, content.path)), share
            else:
                yield _of_whole(stream, content.path), share

    kind = "JSON array" if is_array else "JSON Lines" if by_lines else "JSON"
    return Source(content.path, kind, (*content.notes, encoding.words), False, read)


def _by_lines(content: Packed, encoding: Encoding) -> bool:
    """Whether the first line is a JSON Lines object, or at least not the beginning of another layout."""
    with as_utf8(content.open, encoding) as (stream, _):
        line = stream.readline(MAX_OBJECT_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
        alone = not stream.read(1)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return not alone and line.strip() not in (b"{", b"") and line.rstrip().endswith(b"}")
    return not (alone and isinstance(value, dict) and wrapper(value))


def _row(line: Line, path: Path) -> Row:
    faults = [(fault.field, fault.what) for fault in line.faults]
    return Row(line.number, f"{path}:{line.number}", line.value, faults)


def _elements(text: IO[str], path: Path) -> Iterator[Row]:
    """The objects of an array, each parsed like a line; only a piece of the text is in memory at a time."""
    held, at, line, number, ended = text.read(_PIECE).lstrip("\ufeff"), 0, 1, 0, False

    def more() -> bool:
        """Drop what was parsed and read the next piece; False at the end."""
        nonlocal held, at, ended
        piece = text.read(_PIECE)
        ended = not piece
        held, at = held[at:] + piece, 0
        return not ended

    def skip() -> str:
        """The next character that is not white space; "" at the end."""
        nonlocal at, line
        while True:
            found = _SPACE.match(held, at)
            assert found is not None
            line, at = line + found[0].count("\n"), found.end()
            if at < len(held):
                return held[at]
            if not more():
                return ""

    def damaged(what: str) -> RescoldoError:
        return RescoldoError(f"the JSON array is damaged: {what}", where=f"{path}:{line}", fix="correct it there")

    skip()
    at += 1  # the bracket
    if skip() == "]":
        at += 1
    else:
        while True:
            skip()
            try:
                end = _DECODER.raw_decode(held, at)[1]
                if end < len(held) or ended:  # otherwise a number may continue in the next piece
                    number += 1
                    raw = held[at:end].encode("utf-8", "surrogatepass")
                    row = _row(parse_line(path, number, b" ".join(part.strip() for part in raw.splitlines())), path)
                    row.where = f"{path}, record {number} (line {line})"
                    yield row
                    line, at = line + held.count("\n", at, end), end
                    sign = skip()
                    at += 1
                    if sign == "]":
                        break
                    if sign != ",":
                        raise damaged("Expecting ',' or ']'")
                    continue
            except json.JSONDecodeError as error:
                if ended:
                    raise damaged(error.msg) from None
            except RecursionError:
                raise damaged("nested too deeply") from None
            if len(held) - at > MAX_LINE_BYTES:
                raise damaged(f"a record is longer than {MAX_LINE_BYTES >> 20} MiB, or is not JSON")
            more()
    if skip():
        raise damaged("Extra data after the array")


def _of_whole(stream: IO[bytes], path: Path) -> Iterator[Row]:
    """Consecutive objects over several lines, or the records under a key of a single object."""
    data = stream.read(MAX_OBJECT_BYTES + 1)
    if len(data) > MAX_OBJECT_BYTES:
        raise RescoldoError(
            f"is not JSON Lines, and is too large to parse as a whole ({MAX_OBJECT_BYTES >> 20} MiB)", where=str(path),
            fix=f"jq -c '.' {quote(path)} > lines.jsonl",
        )  # fmt: skip
    text = data.decode("utf-8-sig")
    decoder, at, found = json.JSONDecoder(), 0, 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        number = text.count("\n", 0, at) + 1
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise RescoldoError(
                f"not JSON: {error.msg} (column {error.colno})", where=f"{path}:{error.lineno}", fix="correct it there"
            ) from None
        except RecursionError:
            raise RescoldoError("not JSON that can be read: nested too deeply", where=f"{path}:{number}") from None
        key = wrapper(value) if isinstance(value, dict) else ""
        if key and not found and not text[end:].strip():
            for place, one in enumerate(value[key]):
                row = _row(parse_line(path, place + 1, json.dumps(one).encode()), path)
                row.where = f"{path}, {key}[{place}]"
                yield row
            return
        raw = b" ".join(part.strip() for part in text[at:end].encode().splitlines())
        yield _row(parse_line(path, number, raw), path)
        at, found = end, found + 1
