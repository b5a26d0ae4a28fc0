"""Files that are no JSON Lines: what they are, and a command that makes JSON Lines of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.files import is_lfs_pointer, quote

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip -c"),
    b"BZh": ("bzip2", "bunzip2 -c"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -dc"),
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_WRAPPERS = ("data", "train", "examples", "records", "rows", "items", "samples", "conversations", "instances")
_TABLES = (
    (".tsv", b"\t", "TSV", ", delimiter=chr(9)"),
    (".csv", b",", "CSV", ""),
    (".csv", b";", "CSV", ", delimiter=';'"),
)
MAX_OBJECT_BYTES = 64 << 20  # of a file that is looked at as a whole, to say what it is
_FROM_CSV = (
    'python3 -c "import csv, json, sys; [print(json.dumps(row, ensure_ascii=False)) for row in '
    "csv.DictReader(open(sys.argv[1], encoding='utf-8-sig', newline=''){how})]\" {file} > {lines}"
)
_FROM_PARQUET = (
    'pip install pandas pyarrow; python3 -c "import pandas, sys; pandas.{reader}(sys.argv[1]).to_json(sys.argv[2], '
    "orient='records', lines=True, force_ascii=False)\" {file} {lines}"
)


def refuse_foreign(path: Path, head: bytes) -> None:
    """Stop at a file that is of another kind; `head` is its beginning, some KB.

    Raises:
        RescoldoError: naming the kind, and a command that makes JSON Lines of it.
    """
    file, lines = quote(path), quote(_lines_name(path))

    def refuse(what: str, fix: str) -> RescoldoError:
        return RescoldoError(what, where=str(path), fix=fix)

    if is_lfs_pointer(head):
        raise refuse("is a Git LFS pointer: the file itself has not been fetched", f"git lfs pull --include {file}")
    for magic, (kind, command) in _COMPRESSED.items():
        if head.startswith(magic):
            raise refuse(f"is compressed ({kind})", f"{command} < {file} > {quote(_lines_name(path, path.stem))}")
    if head.startswith(_UTF16):
        raise refuse("is text in UTF-16, not in UTF-8", f"iconv -f UTF-16 -t UTF-8 {file} > {lines}")
    if head.startswith(b"PAR1"):
        raise refuse("is a Parquet file", _FROM_PARQUET.format(reader="read_parquet", file=file, lines=lines))
    if head.startswith(b"PK\x03\x04"):
        if path.suffix.lower() == ".xlsx":
            fix = _FROM_PARQUET.format(reader="read_excel", file=file, lines=lines).replace("pyarrow", "openpyxl")
            raise refuse("is an Excel workbook", fix)
        raise refuse("is a ZIP archive", f"unzip -l {file} shows what is in it; name a .jsonl file of it")
    if b"\0" in head[:4096]:
        raise refuse("is not a text file", "pass JSON Lines in UTF-8")
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0].strip()
    if first[:1] in (b"{", b"[", b""):
        return
    for suffix, separator, kind, how in _TABLES:
        if separator in first and (path.suffix.lower() == suffix or _is_header(first, separator)):
            names = [name.strip().strip('"') for name in first.decode("utf-8", "replace").split(separator.decode())]
            what = f"is a {kind} table (columns {', '.join(names)[:100]}), not JSON Lines"
            raise refuse(what, _FROM_CSV.format(how=how, file=file, lines=lines))


def _is_header(line: bytes, separator: bytes) -> bool:
    """Whether a line looks like the names of a table's columns."""
    names = [name.strip().strip(b'"') for name in line.split(separator)]
    return len(names) > 1 and all(name and len(name) < 40 and name.replace(b"_", b"").isalnum() for name in names)


def _lines_name(path: Path, stem: str | None = None) -> Path:
    """A name beside `path` for what is made of it, which is not its own."""
    name = Path(stem or path.name).stem
    made = path.with_name(f"{name}.jsonl")
    return path.with_name(f"{name}_lines.jsonl") if made == path else made


def whole_object(path: Path, line: int) -> RescoldoError:
    """What is said of a file whose objects span several lines; the first of them begins on `line`."""
    file, lines = quote(path), quote(path.with_name(f"{path.stem}_lines.jsonl"))
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
        "an object spans several lines: in JSON Lines each stands on one",
        where=f"{path}:{line}",
        fix=f"jq -c . {file} > {lines}",
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
    """What is said of a file that is one object with all records under `key`."""
    file, lines = quote(path), quote(path.with_name(f"{path.stem}_lines.jsonl"))
    return RescoldoError(
        f"is one object with {count} records under `{key}`: in JSON Lines each record stands on a line of its own",
        where=str(path),
        fix=f"jq -c '.{key}[]' {file} > {lines}",
    )
