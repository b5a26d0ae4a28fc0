"""Excel workbooks, read row by row with openpyxl's read-only mode; values, not formulas."""

from __future__ import annotations

import datetime
import itertools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.extras import missing
from rescoldo.files import quote
from rescoldo.intake.number_format import percentage, unapplied
from rescoldo.intake.source import Row, Share, Source
from rescoldo.intake.table import header
from rescoldo.intake.unpack import FREE_BYTES, MAX_RATIO, Packed

MAX_STRINGS = 1 << 30  # bytes of the workbook's string table, which is kept in memory
_PIECE = 1 << 20
_LOOKED_AT = 200  # rows whose number formats are looked at before the import
_FORMULA = re.compile(rb"<(?:\w+:)?f[ />]")


def open_workbook(content: Packed, sheet: str = "", names_row: int = 1) -> Source:
    """Open a sheet of a workbook.

    Args:
        sheet: its name; "" for the only one that has rows.
        names_row: the row of the header, or a blank one before it.

    Raises:
        RescoldoError: openpyxl is not installed; the workbook is damaged; it has no such sheet, or several.
    """
    try:
        import openpyxl  # noqa: F401
    except ImportError:
        raise missing(
            "tables", "Excel workbooks are read by the package openpyxl", where=str(content.path),
            otherwise="save the sheet as CSV",
        ) from None  # fmt: skip
    with content.as_file() as place:
        formulas = _look_inside(place, content.path)
        with _opened(place, content.path, True) as book:
            name, notes = _choose(book, sheet, content.path)
            first = next((row for row in _filled(book[name]) if row[0] >= names_row), None)
            if first is None:
                raise RescoldoError("there is no row with names", where=_where(content.path, name, names_row))
            begin = first[0]
            names = header([_value(cell) for cell in first[1]], _where(content.path, name, first[0]))
            notes += _unapplied(book[name], names, begin, content.path)

    @contextmanager
    def read() -> Iterator[tuple[Iterator[Row], Share]]:
        with content.as_file() as place, _opened(place, content.path, True) as book:
            at, last = [0], max(1, book[name].max_row or 1)
            if not formulas:
                yield _rows(book[name], None, names, content.path, at, begin), lambda: min(1.0, at[0] / last)
                return
            with _opened(place, content.path, False) as written:
                yield _rows(book[name], written[name], names, content.path, at, begin), lambda: min(1.0, at[0] / last)

    return Source(content.path, "Excel workbook", (*content.notes, *notes), True, read)


@contextmanager
def _opened(place: Path, path: Path, values: bool) -> Iterator[Any]:
    """The workbook, with the values of its formulas or with the formulas themselves."""
    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and the like, which are not used
            book = openpyxl.load_workbook(place, read_only=True, data_only=values, keep_links=False)
    except Exception as error:  # openpyxl and the XML parser raise many types
        raise _damaged(path, error) from None
    try:
        yield book
    finally:
        book.close()


def _damaged(path: Path, error: Exception) -> RescoldoError:
    said = " ".join(str(error).split())[:120]
    return RescoldoError(
        f"is not a workbook that can be read ({type(error).__name__}: {said})", where=str(path),
        fix="open it in Excel or LibreOffice and save it anew, or as CSV",
    )  # fmt: skip


def _look_inside(place: Path, path: Path) -> bool:
    """Whether any sheet has formulas.

    Raises:
        RescoldoError: it is not a ZIP, or unpacks to more than is plausible.
    """
    try:
        with zipfile.ZipFile(place) as archive:
            parts = archive.infolist()
            whole, held = sum(one.file_size for one in parts), sum(one.compress_size for one in parts)
            texts = sum(one.file_size for one in parts if one.filename == "xl/sharedStrings.xml")
            if texts > MAX_STRINGS or (whole > FREE_BYTES and whole > MAX_RATIO * max(1, held)):
                raise RescoldoError(
                    f"unpacks to {whole >> 20} MiB: too much for a workbook", where=str(path), fix="save it as CSV"
                )
            for one in parts:
                if not one.filename.startswith("xl/worksheets/"):
                    continue
                with archive.open(one) as stream:
                    before = b""
                    while piece := stream.read(_PIECE):
                        if _FORMULA.search(before + piece):
                            return True
                        before = piece[-16:]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, error) from None
    return False


def _choose(book: Any, wanted: str, path: Path) -> tuple[str, tuple[str, ...]]:
    sheets = {one.title: one for one in book.worksheets}
    if wanted and wanted not in sheets:
        raise RescoldoError(
            f"there is no sheet {wanted!r}", where=str(path), fix=f"--sheet {' or '.join(map(quote, sheets))}"
        )
    try:
        filled = [name for name, one in sheets.items() if next(_filled(one), None) is not None]
    except Exception as error:
        raise _damaged(path, error) from None
    if wanted:
        if wanted not in filled:
            raise RescoldoError("the sheet is empty", where=f"{path}, sheet {wanted!r}", fix="name another --sheet")
        return wanted, (f"sheet {wanted!r}",)
    if not filled:
        raise RescoldoError("has no sheet with rows in it", where=str(path))
    if len(filled) > 1:
        raise RescoldoError(
            f"has {len(filled)} sheets with rows ({', '.join(filled)})", where=str(path),
            fix=f"say which one: --sheet {quote(filled[0])}",
        )  # fmt: skip
    return filled[0], (f"sheet {filled[0]!r}",)


def _unapplied(sheet: Any, names: list[str], begin: int, path: Path) -> tuple[str, ...]:
    """A note on each column whose numbers are shown with something that their values do not have."""
    found: dict[str, str] = {}
    try:
        for _, cells in itertools.islice(_filled(sheet), begin + _LOOKED_AT):
            for name, cell in zip(names, cells, strict=False):
                number = isinstance(cell.value, int | float) and not isinstance(cell.value, bool)
                if number and percentage(cell.value, cell.number_format) is None and unapplied(cell.number_format):
                    found.setdefault(name, cell.number_format)
    except Exception as error:  # of openpyxl and the XML parser, of many kinds
        raise _damaged(path, error) from None
    return tuple(f"column {name!r}: numbers without their format ({shown[:40]})" for name, shown in found.items())


def _filled(sheet: Any) -> Iterator[tuple[int, Any]]:
    """(number, cells) of each row with something in it."""
    sheet.reset_dimensions()  # other programs often store wrong dimensions
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        if any(cell.value not in (None, "") for cell in cells):
            yield number, cells


def _where(path: Path, sheet: str, number: int) -> str:
    return f"{path}, sheet {sheet!r}, row {number}"


def _rows(sheet: Any, written: Any, names: list[str], path: Path, at: list[int], begin: int) -> Iterator[Row]:
    """The rows after the header, which is row `begin`. `written` is the same sheet with its formulas, to find formulas
    without a value."""
    try:
        yield from _read_rows(sheet, written, names, path, at, begin)
    except RescoldoError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None


def _read_rows(sheet: Any, written: Any, names: list[str], path: Path, at: list[int], begin: int) -> Iterator[Row]:
    sheet.reset_dimensions()
    formulas = None
    if written is not None:
        written.reset_dimensions()
        formulas = written.iter_rows()
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        at[0] = number
        behind = next(formulas, ()) if formulas else ()
        if number <= begin:
            continue
        computed = [place for place, cell in enumerate(behind) if cell.data_type == "f"]
        if not computed and all(cell.value in (None, "") for cell in cells):
            continue
        values: dict[str, Any] = {}
        faults = []
        for place, cell in enumerate(cells):
            value = _value(cell)
            if place >= len(names):
                if value not in (None, ""):
                    what = "is outside of the columns that the header names (or --header ROW is needed)"
                    faults.append((cell.coordinate, what))
                continue
            if cell.value is not None and cell.data_type == "e":
                faults.append((names[place], f"holds the error {cell.value}"))
            values[names[place]] = value
        for place in computed:
            if place < len(names) and values.get(names[place]) is None:
                what = "is a formula without a stored value: open the workbook in Excel or LibreOffice and save it"
                faults.append((names[place], what))
        values |= {name: None for name in names if name not in values}
        yield Row(number, _where(path, sheet.title, number), values, faults)


def _value(cell: Any) -> Any:
    """A cell's value: text, number, true or false; dates as ISO 8601; percentages as texts, as they are shown."""
    value = cell.value
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        midnight = isinstance(value, datetime.datetime) and value.time() == datetime.time()
        return value.date().isoformat() if midnight and isinstance(value, datetime.datetime) else value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = percentage(value, cell.number_format)
        if shown is not None:
            return shown
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
