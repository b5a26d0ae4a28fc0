"""The adapter in llama.cpp's LoRA format: what its convert_lora_to_gguf.py writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rescoldo.base.gguf import gguf_name, permuted_rows
from rescoldo.export.dtypes import encode
from rescoldo.export.gguf_file import Planned, Value
from rescoldo.export.source import Source

DTYPES = ("F32", "F16", "BF16")


def adapter_metadata(source: Source) -> dict[str, Value]:
    """The keys by which llama.cpp knows a LoRA adapter; it scales by alpha / rank itself."""
    from gguf.constants import GGUFValueType as Kind

    text = int(Kind.STRING)
    return {
        "general.architecture": Value(source.base.family.gguf, text),
        "general.type": Value("adapter", text),
        "general.name": Value(source.run.resolve().name, text),
        "general.base_model.count": Value(1, int(Kind.UINT32)),
        "general.base_model.0.name": Value(source.base_name, text),
        "adapter.type": Value("lora", text),
        "adapter.lora.alpha": Value(float(np.float32(source.adapter.lora.alpha)), int(Kind.FLOAT32)),
    }


def adapter_tensors(source: Source, dtype: str) -> Iterator[Planned]:
    """A (rank, in) as blk.N.….weight.lora_a, B (out, rank) as ….lora_b, q's and k's rows in llama.cpp's order."""
    for name, tensor in source.adapter.parameters.items():
        module, _, part = name.rpartition(".")
        rows = permuted_rows(source.base.config, f"{module}.weight") if part == "lora_B" else None
        stored = tensor if rows is None else tensor[torch.from_numpy(rows)]

        def make(stored: torch.Tensor = stored, name: str = name) -> Any:
            return encode(stored, dtype, name)

        yield Planned(
            f"{gguf_name(source.base.config, module + '.weight')}.{part.lower()}", tuple(tensor.shape), dtype, make
        )
