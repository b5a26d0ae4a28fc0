"""Base and adapter merged into one GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rescoldo.base.gguf import gguf_name, permuted_rows
from rescoldo.export.dtypes import PLAIN, QUANTIZED, encode
from rescoldo.export.gguf_file import Planned
from rescoldo.export.gguf_metadata import rope_factors
from rescoldo.export.source import Source

DTYPES = (*PLAIN, *QUANTIZED)
_BLOCK = 32  # columns of a block of Q8_0 and Q4_0
_OUTER = ("model.embed_tokens.weight", "lm_head.weight")


def default_dtype(source: Source) -> str:
    """Q8_0 if the base is itself quantized, else F16."""
    tensors = source.base.tensors
    quantized = any(tensors.quantized(name) is not None for name in tensors.names())
    return "Q8_0" if quantized else "F16"


def _bits(dtype: str) -> float:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return 8 * float(size) / float(block)


def stored_type(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """The type of a tensor in a file with `dtype`: vectors are in F32, and with Q4_0 the embeddings and the head in
    Q8_0, where four bits lose most (llama.cpp's own quantizer also uses more bits for them)."""
    if len(shape) == 1:
        return "F32"
    if dtype in QUANTIZED and shape[1] % _BLOCK:
        return "F16"
    return "Q8_0" if dtype == "Q4_0" and name in _OUTER else dtype


def merged_tensors(source: Source, dtype: str) -> Iterator[Planned]:
    """All tensors of the merged model, in the base's order, each computed when it is written.

    A matrix without an adapter is copied block by block from a quantized base if a quantized `dtype` of at least the
    same size was requested, because rounding it a second time would lose precision.
    """
    tensors, config = source.base.tensors, source.base.config
    for name in tensors.names():
        shape = tensors.shape(name)
        wanted = stored_type(name, shape, dtype)
        blocks = tensors.quantized(name) if dtype in QUANTIZED and not source.changes(name) else None
        if blocks is not None and _bits(blocks.kind) <= _bits(wanted):

            def copy(name: str = name) -> Any:
                found = tensors.quantized(name)
                assert found is not None
                return found.data.numpy()

            yield Planned(gguf_name(config, name), shape, blocks.kind, copy)
            continue

        def make(name: str = name, wanted: str = wanted) -> Any:
            weight, rows = source.merged(name), permuted_rows(config, name)
            return encode(weight if rows is None else weight[torch.from_numpy(rows)], wanted, name)

        yield Planned(gguf_name(config, name), shape, wanted, make)
    for name, factors in rope_factors(source).items():
        yield Planned(name, factors.shape, "F32", lambda factors=factors: factors)  # type: ignore[misc]
