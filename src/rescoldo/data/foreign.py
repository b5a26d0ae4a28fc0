"""The kind of a file, told from its first bytes, and for files that are not JSON Lines the command that converts
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.files import is_lfs_pointer, quote
from rescoldo.invocation import program

GZIP, BZIP2, XZ, ZSTD, ZIP = "gzip", "bzip2", "xz", "Zstandard", "zip"
COMPRESSED = {GZIP: (".gz",), BZIP2: (".bz2",), XZ: (".xz",), ZSTD: (".zst", ".zstd")}  # → endings of names
COMPRESSIONS = frozenset(ending for endings in COMPRESSED.values() for ending in endings)
PARQUET, ARROW, ARROW_STREAM, WORKBOOK = "Parquet", "Arrow", "Arrow stream", "Excel workbook"
BINARY, TEXT, UTF16, OLD_OFFICE, LFS = "binary", "text", "UTF-16", "old Office file", "Git LFS pointer"
_MAGIC = (
    (b"\x1f\x8b", GZIP),
    (b"BZh", BZIP2),
    (b"\xfd7zXZ\0", XZ),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    (b"PAR1", PARQUET),
    (b"ARROW1", ARROW),
    (b"\xff\xff\xff\xff", ARROW_STREAM),
    (b"PK\x03\x04", ZIP),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OLD_OFFICE),
)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MARK = b"\xef\xbb\xbf"
_WRAPPERS = ("data", "train", "examples", "records", "rows", "items", "samples", "conversations", "instances")
_SEPARATORS = ((b"\t", ".tsv", "TSV"), (b",", ".csv", "CSV"), (b";", ".csv", "CSV"))
MAX_OBJECT_BYTES = 64 << 20  # a larger file is not parsed as a whole to find out what it is


def kind_of(head: bytes) -> str:
    """The kind of a file with this beginning: one of this module's constants. A workbook is a ZIP by its first
    bytes."""
    if is_lfs_pointer(head):
        return LFS
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(_UTF16):
        return UTF16
    return BINARY if b"\0" in head[:4096] else TEXT


def import_command(path: Path) -> str:
    """The command that converts a file of another kind to JSON Lines."""
    return f"{program()} data import {quote(path)} --output {quote(lines_name(path))}"


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raise if a file is not JSON Lines; `head` is its first few KB.

    Raises:
        RescoldoError: with the file's kind and the command that converts it to JSON Lines.
    """
    kind = kind_of(head)
    if kind == TEXT:
        _refuse_table(path, head)
        return
    what, fix = f"is {_article(kind)} {kind} file, not JSON Lines", import_command(path)
    if kind == LFS:
        what = "is a Git LFS pointer: the file itself has not been fetched"
        fix = f"git lfs pull --include {quote(path)}"
    elif kind in COMPRESSED:
        what = f"is compressed ({kind})"
    elif kind == UTF16:
        what = "is text in UTF-16, not in UTF-8"
    elif kind == ZIP:
        what = "is an Excel workbook" if path.suffix.lower() == ".xlsx" else "is a ZIP archive"
    elif kind == OLD_OFFICE:
        what, fix = "is a file of an old Office (.xls, .doc)", "save it as .xlsx or CSV"
    elif kind == BINARY:
        what, fix = "is not a text file", "pass JSON Lines in UTF-8"
    raise RescoldoError(what, where=str(path), fix=fix)


def _refuse_table(path: Path, head: bytes) -> None:
    first = head.removeprefix(_MARK).lstrip().split(b"\n", 1)[0].strip()
    if first[:1] in (b"{", b"[", b""):
        return
    for separator, suffix, kind in _SEPARATORS:
        if separator in first and (path.suffix.lower() == suffix or _is_header(first, separator)):
            names = [name.strip().strip('"') for name in first.decode("utf-8", "replace").split(separator.decode())]
            what = f"is a {kind} table (columns {', '.join(names)[:100]}), not JSON Lines"
            raise RescoldoError(what, where=str(path), fix=import_command(path))


def _is_header(line: bytes, separator: bytes) -> bool:
    """Whether a line looks like the header of a table."""
    names = [name.strip().strip(b'"') for name in line.split(separator)]
    return len(names) > 1 and all(name and len(name) < 40 and name.replace(b"_", b"").isalnum() for name in names)


def _article(word: str) -> str:
    return "an" if word[:1] in "AEIO" else "a"


def lines_name(path: Path) -> Path:
    """The name for the JSON Lines file made from `path`: in the same folder, and different from `path`."""
    stem = Path(path.stem).stem if path.suffix.lower() in (*COMPRESSIONS, ".zip") else path.stem
    made = path.with_name(f"{stem or path.name}.jsonl")
    return path.with_name(f"{stem}_lines.jsonl") if made == path else made


def whole_object(path: Path, line: int) -> RescoldoError:
    """The error for a file whose objects span several lines; the first of them begins on `line`."""
    value: Any = None
    try:
        if path.stat().st_size <= MAX_OBJECT_BYTES:
            value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        value = None
    key = wrapper(value) if isinstance(value, dict) else ""
    if key:
        return wrapped(path, key, len(value[key]))
    return RescoldoError(
        "an object spans several lines: JSON Lines has one object a line",
        where=f"{path}:{line}",
        fix=import_command(path),
    )


def wrapper(record: dict[str, Any]) -> str:
    """The key of an object that holds a whole dataset under it ({"data": [{…}, …]}); "" for any other object."""
    for key in _WRAPPERS:
        value = record.get(key)
        if isinstance(value, list) and value and all(isinstance(one, dict) and len(one) > 1 for one in value):
            is_message = all({"role", "from"} & set(one) for one in value)
            return "" if is_message else key
    return ""


def wrapped(path: Path, key: str, count: int) -> RescoldoError:
    """The error for a file that is one object with all records under `key`."""
    return RescoldoError(
        f"is one object with {count} records under `{key}`: expected one record a line",
        where=str(path),
        fix=import_command(path),
    )
