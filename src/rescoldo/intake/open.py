"""From a path, or the name of a dataset on the Hub, to rows. The content of a file decides how it is read, not its
name."""

from __future__ import annotations

import re
from pathlib import Path

from rescoldo.data.foreign import (
    ARROW,
    ARROW_STREAM,
    BINARY,
    LFS,
    OLD_OFFICE,
    PARQUET,
    UTF16,
    WORKBOOK,
    ZIP,
    refuse_foreign,
)
from rescoldo.errors import RescoldoError
from rescoldo.intake.columnar import open_columnar, open_dataset
from rescoldo.intake.encoding import find_encoding
from rescoldo.intake.objects import open_objects
from rescoldo.intake.source import Source
from rescoldo.intake.table import open_table
from rescoldo.intake.unpack import packed
from rescoldo.intake.workbook import open_workbook

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
HUB = "hf:"


def open_source(
    name: str, *, sheet: str = "", split: str = "", encoding: str = "", separator: str = "", header: int = 1
) -> Source:
    """Open `name`: a file, a dataset's folder, or hf:ORG/NAME. Options that are "" are detected.

    Args:
        sheet: of a workbook.
        split: of a dataset.
        encoding: of a text.
        separator: of a table.
        header: the line of a table, or row of a sheet, that names the columns.

    Raises:
        RescoldoError: it is missing, damaged, or of an unsupported kind.
    """
    path = Path(name)
    of_table = str(header) if header != 1 else ""
    if name.startswith(HUB) or (not path.exists() and _HUB_ID.fullmatch(name) and not path.suffix):
        from rescoldo.intake.hub import fetch_dataset

        return open_dataset(fetch_dataset(name.removeprefix(HUB), split), split)
    if path.is_dir():
        _only(path, "dataset", sheet=sheet, encoding=encoding, separator=separator, header=of_table)
        return open_dataset(path, split)
    content = packed(path)
    if content.kind == WORKBOOK:
        _only(path, content.kind, split=split, encoding=encoding, separator=separator)
        return open_workbook(content, sheet, header)
    if content.kind in (PARQUET, ARROW, ARROW_STREAM):
        given = {"split": split, "sheet": sheet, "encoding": encoding, "separator": separator, "header": of_table}
        _only(path, f"{content.kind} file", **given)
        return open_columnar(content)
    if content.kind in (LFS, OLD_OFFICE, ZIP):
        refuse_foreign(path, content.head)
    _only(path, "text", split=split, sheet=sheet)
    found = find_encoding(content.open, str(path), encoding)
    start = content.head.decode("utf-8" if content.kind not in (UTF16, BINARY) else found.name, "ignore")
    first = start.lstrip("\ufeff \t\r\n")[:1]
    if first in ("{", "["):
        _only(path, "JSON file", separator=separator, header=of_table)
        return open_objects(content, found)
    if not first:
        raise RescoldoError("is empty", where=str(path))
    return open_table(content, found, separator, header)


def _only(path: Path, kind: str, **given: str) -> None:
    """Raise RescoldoError if an option was given that does not apply to this kind of file."""
    for flag, value in given.items():
        if value:
            raise RescoldoError(f"is a {kind}: --{flag} does not apply to it", where=str(path), fix="leave it out")
