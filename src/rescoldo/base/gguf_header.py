"""Reads the header of a GGUF file: metadata and the table of tensors. Nothing in the file is trusted.

Every count and length is checked against the rest of the file and against fixed limits before anything is read or
allocated, so a damaged or hostile file costs at most parsing MAX_HEADER bytes and gives one RescoldoError.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescoldo.errors import RescoldoError

MAGIC = b"GGUF"
MAX_HEADER = 64 << 20  # bytes; the largest vocabularies in use need about 20 MiB
MAX_KEY = 1 << 16
MAX_ENTRIES = 1 << 17  # of metadata entries, and of tensors
DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# ggml's types of tensors by number: name, numbers in a block, bytes of a block. The gguf package has the same table; it
# takes a quarter of a second to import where mistral_common is installed.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One row of the table of tensors.

    Attributes:
        type_name: ggml's name of the stored type ("F32", "Q4_K", …).
        shape: as PyTorch sees it, in elements (GGUF stores dimensions innermost first).
        offset: first byte of the data, from the file's start.
        n_bytes: length of the data.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The header: everything before the weights.

    Attributes:
        metadata: by key: strings, numbers, booleans, lists of strings, numpy arrays of numbers.
        tensors: by GGUF name.
        types: by metadata key: GGUF's type number of the value and, for a list, of its items.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    types: dict[str, tuple[int, int | None]]


class _DamagedError(Exception):
    """A fault of the file; the message describes it."""


class _Cursor:
    """A read position that never leaves the header."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0
        self.end = min(len(data), MAX_HEADER)

    def take(self, n: int) -> int:
        """Advance by `n` bytes; returns where they start."""
        start = self.position
        if n > self.end - start:
            if len(self.data) > MAX_HEADER:
                raise _DamagedError(f"the header is longer than {MAX_HEADER >> 20} MiB, or one of its lengths is wrong")
            raise _DamagedError(
                f"the file ends inside the header, at byte {len(self.data)} (needs {n} bytes from {start})"
            )
        self.position = start + n
        return start

    def number(self, code: str) -> Any:
        """One little-endian number of struct's type `code`."""
        layout = "<" + code
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout)))[0]

    def string(self, limit: int = MAX_HEADER) -> bytes:
        """A length and that many bytes."""
        n = self.number("Q")
        if n > limit:
            raise _DamagedError(f"a string of {n} bytes at byte {self.position - 8}")
        start = self.take(n)
        return self.data[start : start + n]

    def strings(self, count: int) -> list[str]:
        """`count` strings, decoded; bytes that are not UTF-8 become U+FFFD."""
        if count * 8 > self.end - self.position:
            raise _DamagedError(f"a list of {count} strings at byte {self.position} does not fit into the file")
        data, end, unpack, at = self.data, self.end, struct.Struct("<Q").unpack_from, self.position
        result = []
        for _ in range(count):
            if at + 8 > end:
                raise _DamagedError(f"the file ends inside a list of strings, at byte {at}")
            (n,) = unpack(data, at)
            at += 8
            if n > end - at:
                raise _DamagedError(f"a string of {n} bytes at byte {at - 8} does not fit into the file")
            result.append(str(data[at : at + n], "utf-8", "replace"))
            at += n
        self.position = at
        return result

    def value(self, kind: int) -> tuple[Any, int | None]:
        """One metadata value of GGUF's type number `kind`, and for a list the type number of its items."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind]), None
        if kind == _STRING:
            return str(self.string(), "utf-8", "replace"), None
        if kind != _ARRAY:
            raise _DamagedError(f"metadata of unknown type {kind} at byte {self.position}")
        item, count = self.number("I"), self.number("Q")
        if item == _STRING:
            return self.strings(count), item
        if item not in _SCALARS:
            raise _DamagedError(f"a list of items of type {item} at byte {self.position}")
        dtype = np.dtype(_SCALARS[item]).newbyteorder("<")
        start = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, start).copy(), item


def _name(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _DamagedError(f"a {what} that is not UTF-8: {raw[:40]!r}") from None


def _read_metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int | None]]]:
    metadata: dict[str, Any] = {}
    types: dict[str, tuple[int, int | None]] = {}
    for _ in range(count):
        key = _name(cursor.string(MAX_KEY), "metadata key")
        if key in metadata:
            raise _DamagedError(f"metadata key {key!r} is repeated")
        kind = cursor.number("I")
        metadata[key], item = cursor.value(kind)
        types[key] = kind, item
    return metadata, types


def _read_tensors(cursor: _Cursor, count: int, metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise _DamagedError(f"general.alignment is {alignment!r}, not a power of two")
    rows: list[tuple[str, str, tuple[int, ...], int, int]] = []
    for _ in range(count):
        name = _name(cursor.string(MAX_KEY), "tensor name")
        n_dims = cursor.number("I")
        if not 1 <= n_dims <= 4:
            raise _DamagedError(f"tensor {name!r} has {n_dims} dimensions")
        dims = [cursor.number("Q") for _ in range(n_dims)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if kind not in TYPES:
            raise _DamagedError(f"tensor {name!r} has unknown type {kind}")
        type_name, block, size = TYPES[kind]
        n_elements = 1
        for dim in dims:
            n_elements *= dim
        if n_elements < 1 or dims[0] % block:
            raise _DamagedError(f"tensor {name!r} has impossible dimensions {dims} for type {type_name}")
        if offset % alignment:
            raise _DamagedError(f"tensor {name!r} has the offset {offset}: expected a multiple of {alignment}")
        rows.append((name, type_name, tuple(reversed(dims)), offset, n_elements // block * size))
    start = (cursor.position + alignment - 1) // alignment * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, type_name, shape, offset, n_bytes in rows:
        if name in tensors:
            raise _DamagedError(f"tensor {name!r} is repeated")
        if start + offset + n_bytes > len(cursor.data):
            raise _DamagedError(
                f"the file is cut short: tensor {name!r} ends at byte {start + offset + n_bytes}, "
                f"the file at {len(cursor.data)}"
            )
        tensors[name] = TensorInfo(name, type_name, shape, start + offset, n_bytes)
    return tensors


def _parse(data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(data)
    if data[:4] != MAGIC:
        raise _DamagedError("it does not begin with GGUF's magic number")
    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        if version and not version & 0xFFFF:
            raise _DamagedError("it is a big-endian GGUF; only little-endian files are read")
        raise _DamagedError(f"it says GGUF version {version}; versions 2 and 3 are read")
    n_tensors, n_metadata = cursor.number("Q"), cursor.number("Q")
    if n_tensors > MAX_ENTRIES or n_metadata > MAX_ENTRIES:
        raise _DamagedError(f"it claims {n_tensors} tensors and {n_metadata} metadata keys")
    metadata, types = _read_metadata(cursor, n_metadata)
    return GgufHeader(metadata, _read_tensors(cursor, n_tensors, metadata), types)


def is_gguf(path: Path) -> bool:
    """Whether the file begins with GGUF's magic number."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file at `path`.

    Raises:
        RescoldoError: the file cannot be read, is not a GGUF file, or is damaged.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data)
    except (_DamagedError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        what = str(error) if isinstance(error, _DamagedError) else "it is empty"
        raise RescoldoError(
            f"this is not a usable GGUF file: {what}",
            where=str(path),
            fix="fetch the file again and compare its size with that of the source",
        ) from None
    except OSError as error:
        raise RescoldoError(f"cannot read the GGUF file: {error.strerror or error}", where=str(path)) from None
