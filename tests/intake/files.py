"""The same records in every kind of file that is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROWS: list[dict[str, Any]] = [
    {"prompt": "Where's the Prado; exactly, please?", "completion": "In Madrid\nSpain", "Región": "España"},
    {"prompt": 'ñ, "x"\t|', "completion": "y; 'z' \\ end", "Región": "Grün €"},
    {"prompt": "3", "completion": "three", "Región": "x"},
]
RECORDS = [
    {"prompt": row["prompt"], "completion": row["completion"], "metadata": {"Región": row["Región"]}} for row in ROWS
]


def table(separator: str = ",", rows: Sequence[dict[str, Any]] = ROWS, end: str = "\r\n") -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def lines(rows: Sequence[dict[str, Any]] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def workbook(path: Path, sheets: dict[str, list[list[Any]]]) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def cells(rows: Sequence[dict[str, Any]] = ROWS) -> list[list[Any]]:
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def _zst(path: Path) -> None:
    import pyarrow

    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(lines())


def _parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)


def _arrow(path: Path, stream: bool) -> None:
    import pyarrow

    made = pyarrow.Table.from_pylist(ROWS)
    opened = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as file, opened(file, made.schema) as writer:
        writer.write_table(made, max_chunksize=2)


def saved_dataset(folder: Path, rows: Sequence[dict[str, Any]] = ROWS, features: Any = None) -> Path:
    """As datasets.Dataset.save_to_disk leaves it."""
    import pyarrow

    folder.mkdir(parents=True)
    made = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, made.schema) as writer:
            writer.write_table(made)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return folder


KINDS: dict[str, Callable[[Path], object]] = {
    "comma.csv": lambda p: p.write_text(table(), encoding="utf-8", newline=""),
    "semicolon.csv": lambda p: p.write_text(table(";", end="\n"), encoding="utf-8", newline=""),
    "bar.txt": lambda p: p.write_text(table("|"), encoding="utf-8", newline=""),
    "tab.tsv": lambda p: p.write_text(table("\t"), encoding="utf-8", newline=""),
    "excel.csv": lambda p: p.write_text("sep=;\r\n" + table(";"), encoding="utf-8-sig", newline=""),
    "mark.csv": lambda p: p.write_text(table(), encoding="utf-8-sig", newline=""),
    "utf16.csv": lambda p: p.write_text(table("\t"), encoding="utf-16", newline=""),
    "utf16be.csv": lambda p: p.write_bytes(b"\xfe\xff" + table(";").encode("utf-16-be")),
    "utf16-plain.csv": lambda p: p.write_bytes(table().encode("utf-16-le")),
    "windows.csv": lambda p: p.write_text(table(";"), encoding="cp1252", newline=""),
    "lines.jsonl": lambda p: p.write_bytes(lines()),
    "lines16.jsonl": lambda p: p.write_text(lines().decode(), encoding="utf-16"),
    "array.json": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "wrapped.json": lambda p: p.write_text(json.dumps({"version": 1, "data": ROWS})),
    "wrapped-lines.json": lambda p: p.write_text(json.dumps({"data": ROWS}, indent=2)),
    "indented.json": lambda p: p.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "lines.jsonl.gz": lambda p: p.write_bytes(gzip.compress(lines()[:80]) + gzip.compress(lines()[80:])),
    "comma.csv.bz2": lambda p: p.write_bytes(bz2.compress(table().encode())),
    "lines.jsonl.xz": lambda p: p.write_bytes(lzma.compress(lines()[:90]) + lzma.compress(lines()[90:])),
    "lines.jsonl.zst": _zst,
    "one.zip": lambda p: p.write_bytes(zipped({"__MACOSX/x": b"", "data/rows.csv": table(";").encode("utf-16")})),
    "table.parquet": _parquet,
    "file.arrow": lambda p: _arrow(p, False),
    "stream.arrow": lambda p: _arrow(p, True),
    "saved": saved_dataset,
    "book.xlsx": lambda p: workbook(p, {"Q3": cells(), "empty": []}),
}
