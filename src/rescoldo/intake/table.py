"""CSV and TSV: the dialect is detected from the beginning of the file, and every row must then conform to it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rescoldo.data.records import MAX_LINE_BYTES
from rescoldo.errors import RescoldoError
from rescoldo.intake.encoding import Encoding, as_text
from rescoldo.intake.source import Row, Share, Source
from rescoldo.intake.unpack import Packed

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_SAMPLE = 256 << 10  # characters used to detect the dialect
_ROWS = 200
_EXCEL = re.compile(r'^"?sep=(.)"?\r?\n')  # a first line that is specific to Excel


@dataclass(frozen=True)
class Dialect:
    """How a table is written. `quote` is "" if quotes are ordinary characters; `escape` precedes an escaped quote."""

    separator: str
    quote: str = '"'
    escape: str = ""
    skip: int = 0  # lines before the header, which declare the separator

    @property
    def words(self) -> str:
        """A description for people: "separator ; (semicolon), quotes doubled"."""
        name = SEPARATORS.get(self.separator)
        shown = name if self.separator == "\t" else f"{self.separator} ({name})" if name else self.separator
        how = "quotes are ordinary letters" if not self.quote else f"in quotes {self.quote}{self.quote} is a quote"
        if self.escape:
            how = f"in quotes {self.escape}{self.quote} is a quote"
        told = ", as its first line says (sep=)" if self.skip else ""
        return f"separator {shown}{told}; {how}"

    def reader(self, lines: Iterable[str], *, strict: bool = True) -> Any:
        """The reader of the csv module for this dialect."""
        csv.field_size_limit(MAX_LINE_BYTES)
        return csv.reader(
            lines,
            delimiter=self.separator,
            quotechar=self.quote or None,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            doublequote=not self.escape,
            escapechar=self.escape or None,
            strict=strict and bool(self.quote),
        )


def open_table(content: Packed, encoding: Encoding, separator: str = "", names_line: int = 1) -> Source:
    """Open a table in a text file.

    Args:
        separator: given by the user; "" to detect it.
        names_line: the line of the header, or a blank one before it.

    Raises:
        RescoldoError: it is not a table, or its header cannot be used.
    """
    with as_text(content.open, encoding) as (text, _):
        sample = text.read(_SAMPLE)
    dialect = find_dialect(sample, len(sample) == _SAMPLE, content, separator)
    rows = _rows(io.StringIO(sample, newline=""), dialect, content.path)
    first = next((row for row in rows if row.number >= names_line), None)
    if first is None or first.cells is None:
        where = f"{content.path}:{first.number}" if first else str(content.path)
        raise RescoldoError(first.what if first else "is empty", where=where, fix="a header and rows are expected")
    names, header_line = header(first.cells, f"{content.path}:{first.number}"), first.number

    @contextmanager
    def read() -> Iterator[tuple[Iterator[Row], Share]]:
        with as_text(content.open, encoding) as (text, share):
            behind = (row for row in _rows(text, dialect, content.path) if row.number > header_line)
            yield _named(behind, names, content.path), share

    kind = "TSV table" if dialect.separator == "\t" else "CSV table"
    return Source(content.path, kind, (*content.notes, encoding.words, dialect.words), True, read)


@dataclass
class _Cells:
    number: int
    cells: list[str] | None
    what: str = ""


def _rows(text: Iterable[str], dialect: Dialect, path: Path) -> Iterator[_Cells]:
    """The rows that are not blank, each with the number of the line that it begins on."""
    lines = iter(text)
    for _ in range(dialect.skip):
        next(lines, None)
    reader = dialect.reader(lines)
    while True:
        number = reader.line_num + 1 + dialect.skip
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Cells(number, None, _explained(str(error)))
            continue
        if any(cell.strip() for cell in cells):
            yield _Cells(number, cells)


def _explained(said: str) -> str:
    if "field larger" in said:
        return f"a cell is longer than {MAX_LINE_BYTES >> 20} MiB: a quote that is not closed?"
    if "unexpected end" in said:
        return "the file ends within quotes: a quote that begins on this line is not closed"
    if "expected after" in said:
        return "a cell has text after its closing quote: a quote within a cell has to be doubled"
    return f"is not a row of a table ({said})"


def header(cells: list[Any], where: str) -> list[str]:
    """The unique names of the columns. A column without one is called "Unnamed: 2".

    Raises:
        RescoldoError: a name is repeated, or all are empty.
    """
    names = ["" if cell is None else str(cell).lstrip("\ufeff").strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    named = [name or f"Unnamed: {place}" for place, name in enumerate(names)]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise RescoldoError(
            f"two columns are called {twice[0]!r}", where=where, fix="give each column a different name"
        )
    if not any(names):
        raise RescoldoError("the header is empty", where=where, fix="the first row must name the columns")
    return named


def _named(rows: Iterator[_Cells], names: list[str], path: Path) -> Iterator[Row]:
    """The rows after the header, by column."""
    for row in rows:
        where = f"{path}:{row.number}"
        if row.cells is None:
            yield Row(row.number, where, None, [("", row.what)])
            continue
        cells = row.cells
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(names):
            what = f"has {len(cells)} cells, but the header names {len(names)} columns (or --header LINE is needed)"
            yield Row(row.number, where, None, [("", what)])
            continue
        yield Row(row.number, where, dict(zip(names, cells, strict=True)))


def find_dialect(sample: str, cut: bool, content: Packed, separator: str = "") -> Dialect:
    """The dialect of a table that begins with `sample`, which is `cut` off if the table is longer.

    Raises:
        RescoldoError: no separator splits the sample into rows of equal length.
    """
    said = _EXCEL.match(sample)
    skip, body = (1, sample[said.end() :]) if said else (0, sample)
    separator = separator or (said[1] if said else "")
    scored = []
    for candidate in [separator] if separator else SEPARATORS:
        rows = _sampled(Dialect(candidate), body, cut)
        if rows and (len(rows[0]) > 1 or separator):
            width = len(rows[0])
            others = sum(cell.count(other) for cell in rows[0] for other in SEPARATORS if other != candidate)
            blanks = sum(cell != cell.lstrip() for cell in rows[0])
            scored.append((fmean(len(row) == width for row in rows), -others - blanks, width, candidate))
    if scored:
        chosen = max(scored)[3]
    elif content.name.lower().endswith((".csv", ".tsv", ".tab")) and body.strip():
        chosen = "\t" if content.name.lower().endswith((".tsv", ".tab")) else ","  # a single column
    else:
        prose = "; plain text (.txt, .md) is learned directly" if content.name.lower().endswith((".txt", ".md")) else ""
        raise RescoldoError(
            "is neither JSON nor a table", where=str(content.path),
            fix=f"a header with the columns' names is expected, and a separator (--separator){prose}",
        )  # fmt: skip
    return _quoting(chosen, skip, body, cut)


def _quoting(separator: str, skip: int, body: str, cut: bool) -> Dialect:
    """The first quoting style for which the sample is valid."""
    ways = [Dialect(separator, skip=skip)]
    if '\\"' in body:
        ways.append(Dialect(separator, escape="\\", skip=skip))
    if separator == "\t":
        ways.append(Dialect(separator, quote="", skip=skip))
    return min(ways, key=lambda way: _faults(way, body, cut))  # the first of equal ones


def _faults(dialect: Dialect, body: str, cut: bool) -> int:
    rows = list(_rows(io.StringIO(body, newline=""), Dialect(dialect.separator, dialect.quote, dialect.escape), Path()))
    if cut and rows:
        rows.pop()
    width = len(rows[0].cells or ()) if rows else 0
    return sum(row.cells is None or len(row.cells) != width for row in rows)


def _sampled(dialect: Dialect, body: str, cut: bool) -> list[list[str]]:
    rows = []
    try:
        for row in dialect.reader(io.StringIO(body, newline=""), strict=False):
            if any(cell.strip() for cell in row):
                rows.append(row)
            if len(rows) > _ROWS:
                break
    except csv.Error:
        return rows
    return rows[:-1] if cut and len(rows) > 1 else rows
