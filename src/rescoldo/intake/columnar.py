"""Parquet and Arrow files, and datasets saved by Hugging Face's library, read in batches by pyarrow."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rescoldo.data.foreign import ARROW, ARROW_STREAM, PARQUET
from rescoldo.errors import RescoldoError
from rescoldo.extras import missing
from rescoldo.files import load_json, read_json
from rescoldo.intake.source import Row, Share, Source
from rescoldo.intake.unpack import Packed, packed

BATCH = 500  # rows
_SHARD = re.compile(r"(?P<split>[\w.-]+?)-(?P<place>\d{5})-of-(?P<all>\d{5})(?:-[0-9a-f]+)?$")
_SPOKEN = (("role", "content"), ("from", "value"))  # the keys of a message, by format
_SPLITS = ("train", "validation", "valid", "val", "test", "dev")


def open_columnar(content: Packed) -> Source:
    """Open a Parquet or Arrow file.

    Raises:
        RescoldoError: pyarrow is not installed, or the file is damaged.
    """
    _need_pyarrow(content.path)
    return _source(content.path, f"{content.kind} file", content.notes, [content], {})


def open_dataset(folder: Path, split: str = "") -> Source:
    """Open a dataset folder: one written by `save_to_disk`, or Parquet files as the Hub keeps them.

    Args:
        split: its name; "" for the only one.

    Raises:
        RescoldoError: it is not a dataset, has no such split or several, or pyarrow is not installed.
    """
    _need_pyarrow(folder)
    saved = folder / "dataset_dict.json"
    if saved.is_file():
        names = [str(name) for name in load_json(saved).get("splits") or []]
        inside = folder / _chosen(names, split, folder)
        if inside.parent != folder:
            raise RescoldoError("a split's name points outside of the dataset", where=str(saved))
        return _saved(inside)
    if (folder / "state.json").is_file():
        return _saved(folder)
    shards: dict[str, list[Path]] = {}
    found = sorted([*folder.rglob("*.parquet"), *folder.rglob("*.arrow")])
    parts = {path: _part_of(path, folder) for path in found}
    for path in found:
        name = f"{parts[path]}/{_split_of(path)}" if len(set(parts.values())) > 1 else _split_of(path)
        shards.setdefault(name, []).append(path)
    if not shards:
        raise RescoldoError(
            "is a folder without a dataset (no state.json, no .arrow and no .parquet files)", where=str(folder),
            fix="name a file, or the folder that save_to_disk has written",
        )  # fmt: skip
    chosen = _chosen(list(shards), split, folder)
    _refuse_missing(shards[chosen], folder)
    kind = f"dataset of {len(shards[chosen])} {shards[chosen][0].suffix[1:]} files"
    return _source(folder, kind, (f"split {chosen}",), [packed(path) for path in shards[chosen]], {})


def _part_of(path: Path, folder: Path) -> str:
    """The part of a dataset (a config, in the Hub's terms) that a file belongs to, according to its folders."""
    folders = path.parent.relative_to(folder).parts
    return "/".join(name for name in folders if name not in (*_SPLITS, "data")) or "."


def _split_of(path: Path) -> str:
    """The split that a file of a dataset belongs to, according to its name or its folder's."""
    shard = _SHARD.match(path.stem)
    if shard:
        return shard["split"]
    return next((name for name in _SPLITS if name in (path.stem, path.parent.name)), path.stem)


def _refuse_missing(files: Sequence[Path], folder: Path) -> None:
    """Raise RescoldoError if the names of the files show that some are missing."""
    shards = [shard for path in files if (shard := _SHARD.match(path.stem))]
    wanted = max((int(shard["all"]) for shard in shards), default=0)
    there = {int(shard["place"]) for shard in shards}
    lacking = next((place for place in range(wanted) if place not in there), None)
    if lacking is not None:
        raise RescoldoError(
            f"has {len(there)} of the {wanted} files of {shards[0]['split']}: number {lacking:05} is missing",
            where=str(folder),
            fix="fetch the rest; or name one of the files, to import it alone",
        )


def _saved(folder: Path) -> Source:
    files = load_json(folder / "state.json").get("_data_files")
    names = [one.get("filename") for one in files or [] if isinstance(one, dict)]
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise RescoldoError("names no Arrow files in its folder", where=str(folder / "state.json"))
    features = (read_json(folder / "dataset_info.json") or {}).get("features")
    labels = _label_names(features)
    content = [packed(folder / str(name)) for name in names]
    return _source(folder, "Hugging Face dataset on disk", (f"{len(names)} Arrow files",), content, labels)


def _chosen(names: list[str], wanted: str, folder: Path) -> str:
    if wanted:
        if wanted not in names:
            raise RescoldoError(f"has no split {wanted!r}", where=str(folder), fix=f"--split {' or '.join(names)}")
        return wanted
    if len(names) != 1:
        raise (
            RescoldoError(
                f"has {len(names)} splits ({', '.join(names)})",
                where=str(folder),
                fix=f"say which one: --split {names[0]}",
            )
            if names
            else RescoldoError("has no splits", where=str(folder))
        )
    return names[0]


def _need_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise missing(
            "tables", "Parquet and Arrow files are read by the package pyarrow", where=str(path),
            otherwise="save the data as JSON Lines or CSV",
        ) from None  # fmt: skip


def _source(
    path: Path, kind: str, notes: Sequence[str], content: Sequence[Packed], labels: dict[str, list[str]]
) -> Source:
    @contextmanager
    def read() -> Iterator[tuple[Iterator[Row], Share]]:
        at = [0.0]
        with ExitStack() as stack:
            yield _rows(content, labels, path, at, stack), lambda: min(1.0, at[0])

    return Source(path, kind, tuple(notes), False, read)


def _rows(
    content: Sequence[Packed], labels: dict[str, list[str]], path: Path, at: list[float], stack: ExitStack
) -> Iterator[Row]:
    import pyarrow

    for place, one in enumerate(content):
        number = 0
        named = "" if len(content) == 1 and one.path == path else f"{one.path.name}, "
        try:
            file = stack.enter_context(one.as_file())
            for batch, share, names in _batches(one.kind, file, stack):
                for values in batch:
                    number += 1
                    where = f"{path}, {named}row {number}"
                    yield _row(number, where, values, names or labels)
                at[0] = (place + share) / len(content)
        except (pyarrow.ArrowException, OSError) as error:
            said = " ".join(str(error).split())[:120]
            raise RescoldoError(f"is damaged or cannot be read ({said})", where=str(one.path)) from None


def _batches(kind: str, file: Path, stack: ExitStack) -> Iterator[tuple[list[dict[str, Any]], float, Any]]:
    """Batches of rows, the fraction of the file at their end, and the names of labels stored in the file."""
    import pyarrow
    import pyarrow.parquet

    if kind == PARQUET:
        with pyarrow.parquet.ParquetFile(file, memory_map=False) as table:
            names = _label_names(_features(table.schema_arrow.metadata))
            done, all_ = 0, max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=BATCH):
                done += batch.num_rows
                yield batch.to_pylist(), done / all_, names
        return
    source = stack.enter_context(pyarrow.memory_map(str(file)))
    size = max(1, source.size())
    if kind == ARROW:
        table = pyarrow.ipc.open_file(source)
        batches: Any = (table.get_batch(i) for i in range(table.num_record_batches))
    elif kind == ARROW_STREAM:
        table = batches = pyarrow.ipc.open_stream(source)
    else:
        raise RescoldoError("is neither Parquet nor Arrow", where=str(file))
    names = _label_names(_features(table.schema.metadata))
    for batch in batches:
        for begin in range(0, batch.num_rows, BATCH):
            yield batch.slice(begin, BATCH).to_pylist(), source.tell() / size, names


def _features(metadata: Any) -> Any:
    """What Hugging Face's library has stored about the columns in a schema's metadata."""
    try:
        return json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _label_names(features: Any) -> dict[str, list[str]]:
    """Column → the names of its labels, for columns whose numbers stand for names (ClassLabel)."""
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            found[str(column)] = names
    return found


def _row(number: int, where: str, values: dict[str, Any], labels: dict[str, list[str]]) -> Row:
    row = Row(number, where, {})
    assert row.values is not None
    for column, value in values.items():
        try:
            plain = _plain(value)
        except ValueError as error:
            row.faults.append((column, str(error)))
            continue
        if column in labels and isinstance(plain, int):
            if not -1 <= plain < len(labels[column]):
                row.faults.append((column, f"has the label {plain}: expected 0 to {len(labels[column]) - 1}"))
                continue
            plain = labels[column][plain] if plain >= 0 else None
        row.values[column] = plain
    return row


def _plain(value: Any) -> Any:
    """Convert an Arrow value to JSON types. Empty fields of a struct are removed, since Arrow cannot leave them out.

    Raises:
        ValueError: it is binary.
    """
    if isinstance(value, dict):
        fields = {str(key): _plain(part) for key, part in value.items() if part is not None}
        return _transposed(fields)
    if isinstance(value, list | tuple):
        if value and all(isinstance(part, tuple) and len(part) == 2 for part in value):  # a map
            return {str(key): _plain(part) for key, part in value}
        return [_plain(part) for part in value]
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"holds {len(value)} bytes of binary data ({base64.b64encode(bytes(value[:6])).decode()}…)")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # pandas writes an empty cell as NaN
    if isinstance(value, decimal.Decimal | uuid.UUID | datetime.timedelta):
        return str(value)
    return value


def _transposed(fields: dict[str, Any]) -> Any:
    """A list of messages that Hugging Face's library stores as an object of lists (`Sequence` of a struct)."""
    said = next((pair for pair in _SPOKEN if all(isinstance(fields.get(key), list) for key in pair)), None)
    if said is None:
        return fields  # arguments of a tool call may also be called "from"
    length = len(fields[said[0]])
    if not all(isinstance(column, list) and len(column) == length for column in fields.values()):
        return fields
    return [{key: column[i] for key, column in fields.items() if column[i] is not None} for i in range(length)]
