"""Writes a GGUF file tensor by tensor, and verifies it by reading it again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescoldo.base.gguf_header import read_header
from rescoldo.errors import EXIT_FAILURE, RescoldoError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its GGUF name, shape in elements, ggml type, and a function for its bytes (called once)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Array]

    @property
    def n_bytes(self) -> int:
        """Length of its data."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.dtype]]
        return math.prod(self.shape) // int(block) * int(size)


@dataclass(frozen=True)
class Value:
    """A metadata value with GGUF's type numbers for it and, if it is a list, for its items."""

    value: Any
    kind: int
    item: int | None = None


def write_gguf(
    path: Path,
    metadata: dict[str, Value],
    tensors: Sequence[Planned],
    on_tensor: Callable[[Planned], None] = lambda _: None,
) -> None:
    """Write the file, with one tensor in memory at a time. `metadata` must include general.architecture.

    Raises:
        RescoldoError: the file's content differs from what was written.
        OSError: from the system.
    """
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType, GGUFValueType

    writer = GGUFWriter(None, metadata["general.architecture"].value)
    for key, value in metadata.items():
        if key != "general.architecture":
            item = None if value.item is None else GGUFValueType(value.item)
            writer.add_key_value(key, value.value, GGUFValueType(value.kind), item)
    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.dtype]
        writer.add_tensor_info(tensor.name, _byte_shape(tensor), np.dtype(np.uint8), tensor.n_bytes, kind)
    digests: dict[str, bytes] = {}
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            data = np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8)
            digests[tensor.name] = hashlib.sha256(data.data).digest()
            writer.write_tensor_data(data)
            on_tensor(tensor)
    finally:
        writer.close()
    _check(path, metadata, tensors, digests)


def _byte_shape(tensor: Planned) -> tuple[int, ...]:
    """The shape in bytes, which the writer expects for a quantized type."""
    rows = math.prod(tensor.shape[:-1])
    return (*tensor.shape[:-1], tensor.n_bytes // rows)


def _same(read: Any, meant: Any) -> bool:
    return np.array_equal(read, meant) if isinstance(read, np.ndarray) else bool(read == meant)


def _check(path: Path, metadata: dict[str, Value], tensors: Sequence[Planned], digests: dict[str, bytes]) -> None:
    header = read_header(path)
    faults = [key for key, value in metadata.items() if not _same(header.metadata.get(key), value.value)]
    for tensor in tensors:
        info = header.tensors.get(tensor.name)
        if info is None or (info.shape, info.type_name) != (tensor.shape, tensor.dtype):
            faults.append(tensor.name)
            continue
        data = np.memmap(path, np.uint8, "r", info.offset, info.n_bytes)
        if hashlib.sha256(data.data).digest() != digests[tensor.name]:
            faults.append(tensor.name)
    if len(header.tensors) != len(tensors) or faults:
        raise RescoldoError(
            f"does not read back as it was written: {', '.join(faults[:4]) or 'number of tensors'}",
            where=str(path),
            fix="check the disk, then export again",
            exit_code=EXIT_FAILURE,
        )
