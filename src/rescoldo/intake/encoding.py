"""The encoding of a text, from its byte order mark, from which encodings all of it is valid in, or by
charset-normalizer."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

from rescoldo.errors import RescoldoError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32 LE with a byte order mark"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32 BE with a byte order mark"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16 LE with a byte order mark"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16 BE with a byte order mark"),
)
# Encodings that tables are saved in without a mark, the most common first.
_LIKELY = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "mac_roman", "cp850", "koi8_r", "gb18030", "big5"]
_LIKELY += ["shift_jis", "euc_jp", "euc_kr"]
_CLOSE = 0.05  # smaller differences in charset-normalizer's measure of disorder are not significant
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_PIECE = 256 << 10
_SAMPLE = 64 << 10  # bytes of non-ASCII lines used to guess the encoding
_MAX_LINE = 4 << 20

Opener = Callable[[], AbstractContextManager[tuple[IO[bytes], Callable[[], float]]]]


@dataclass(frozen=True)
class Encoding:
    """An encoding that all of a text is valid in: Python's `name` for it, and a description for people."""

    name: str
    words: str


def find_encoding(opener: Opener, where: str, given: str = "") -> Encoding:
    """Read a text once and find its encoding.

    Args:
        given: the encoding named by the user; "" to find it.

    Raises:
        RescoldoError: the file is not text, is not valid in any known encoding, or is UTF-8 except for single lines.
    """
    if given:
        try:
            codecs.lookup(given)
        except (LookupError, ValueError):
            raise RescoldoError(
                f"there is no encoding {given[:40]!r}", where="--encoding", fix="utf-8, utf-16, cp1252, latin-1, …"
            ) from None
        return _checked(opener, Encoding(given, f"{given}, as --encoding says"), where)
    with opener() as (stream, _):
        head = stream.read(4096)
    for mark, name, words in _MARKS:
        if head.startswith(mark):
            return _checked(opener, Encoding(name, words), where)
    if b"\0" in head:
        return _checked(opener, _without_mark(head, where), where)
    bad = _first_invalid(opener, "utf-8")
    return Encoding("utf-8", "UTF-8") if bad is None else _guessed(opener, where)


def _without_mark(head: bytes, where: str) -> Encoding:
    """UTF-16 without a byte order mark: in Western text every other byte is zero."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    half = len(head) // 2
    for name, many, few in (("LE", odd, even), ("BE", even, odd)):
        text = head.decode(f"utf-16-{name}", "ignore")
        if many > 0.3 * half and few < 0.05 * half and not _CONTROL.search(text):
            return Encoding(f"utf-16-{name.lower()}", f"UTF-16 {name} without a byte order mark")
    raise RescoldoError("is not a text file", where=where, fix="CSV, XLSX, Parquet and JSON are read")


def _checked(opener: Opener, encoding: Encoding, where: str) -> Encoding:
    bad = _first_invalid(opener, encoding.name)
    if bad is not None:
        raise RescoldoError(
            f"is not valid as {encoding.words}",
            where=f"{where}:{bad}",
            fix="fix that line, or name the --encoding",
        )
    return encoding


def _first_invalid(opener: Opener, name: str) -> int | None:
    """The number of the first line that is not valid in an encoding; None if all are valid."""
    decoder = codecs.getincrementaldecoder(name)("strict")
    line = 1
    with opener() as (stream, _):
        while True:
            piece = stream.read(_PIECE)
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                before = error.object[: error.start]
                return line + before.decode(name, "ignore").count("\n")
            if not isinstance(text, str):
                return 1  # a codec that does not decode to text (base64, rot13)
            line += text.count("\n")
            if not piece:
                return None


def _guessed(opener: Opener, where: str) -> Encoding:
    """The encoding of a text that is not entirely UTF-8."""
    valid, invalid, first, sample = 0, 0, 0, bytearray()
    with opener() as (stream, _):
        number = 0
        while line := stream.readline(_MAX_LINE):
            number += 1
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                valid += 1
            except UnicodeDecodeError:
                invalid += 1
                first = first or number
                if len(sample) < _SAMPLE:
                    sample += line[:_SAMPLE]
    if valid > invalid:
        what = f"is UTF-8 except for {invalid} of its lines, of which this is the first: a damaged or mixed text"
        raise RescoldoError(what, where=f"{where}:{first}", fix="fix those lines, or name the --encoding")
    return _checked(opener, _by_statistics(bytes(sample[:_SAMPLE])), where)


def _by_statistics(sample: bytes) -> Encoding:
    from charset_normalizer import from_bytes

    found = from_bytes(sample, cp_isolation=_LIKELY, preemptive_behaviour=False)
    best = found.best()
    near = [one for one in found if best is not None and one.chaos <= best.chaos + _CLOSE]
    if best is None or any("cp1252" in one.could_be_from_charset for one in near):
        how = "recognized" if best else "assumed, the text is too short to tell"
        also = ", the same as Latin-1" if not any(0x80 <= byte < 0xA0 for byte in sample) else ""
        return Encoding("cp1252", f"Windows-1252{also} ({how}; another: --encoding)")
    return Encoding(best.encoding, f"{best.encoding} (recognized; another: --encoding)")


@contextmanager
def as_text(opener: Opener, encoding: Encoding) -> Iterator[tuple[io.TextIOWrapper, Callable[[], float]]]:
    """The text with its line ends unchanged, and a function for the fraction of the file read so far."""
    with opener() as (stream, share):
        yield io.TextIOWrapper(cast(Any, stream), encoding=encoding.name, newline=""), share


@contextmanager
def as_utf8(opener: Opener, encoding: Encoding) -> Iterator[tuple[IO[bytes], Callable[[], float]]]:
    """The text as UTF-8 bytes, with `peek`, and a function for the fraction of the file read so far."""
    if encoding.name in ("utf-8", "utf-8-sig"):
        with opener() as found:
            yield found
        return
    with as_text(opener, encoding) as (text, share):
        yield cast(IO[bytes], io.BufferedReader(_Recoded(text))), share


class _Recoded(io.RawIOBase):
    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._rest = text, b""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        if not self._rest:
            self._rest = self._text.read(64 << 10).encode("utf-8", "surrogatepass")
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)
