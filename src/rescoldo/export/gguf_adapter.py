"""The adapter in llama.cpp's LoRA format, as written by its convert_lora_to_gguf.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rescoldo.base.gguf import gguf_name, permuted_rows
from rescoldo.engine.kinds import KINDS, PLAIN, B
from rescoldo.export.dtypes import encode
from rescoldo.export.gguf_file import Planned, Value
from rescoldo.export.source import Source

DTYPES = ("F32", "F16", "BF16")


def lacks(source: Source) -> str:
    """The part of the adapter that the format cannot represent; "" if it can represent all of it."""
    return f"the magnitudes of {KINDS[source.adapter.lora.kind].title}" if source.adapter.lora.magnitude else ""


def _alpha(source: Source) -> float:
    """The single alpha of the format: scale · rank if that is the same for all linears; otherwise the config's, and B
    is multiplied by the rest of the scale (`_factor`)."""
    lora = source.adapter.lora
    all_of_them = {lora.scale_of(name) * lora.rank_of(name) for name in lora.targets}
    return all_of_them.pop() if lora.kind != PLAIN and len(all_of_them) == 1 else lora.alpha


def _factor(source: Source, module: str) -> float:
    """The factor on a linear's B with which llama.cpp's alpha / rank gives the right scale."""
    lora = source.adapter.lora
    return lora.scale_of(module) * lora.rank_of(module) / _alpha(source)


def adapter_metadata(source: Source) -> dict[str, Value]:
    """The metadata of a LoRA adapter for llama.cpp, which itself scales by alpha / rank."""
    from gguf.constants import GGUFValueType as Kind

    text = int(Kind.STRING)
    return {
        "general.architecture": Value(source.base.family.gguf, text),
        "general.type": Value("adapter", text),
        "general.name": Value(source.run.resolve().name, text),
        "general.base_model.count": Value(1, int(Kind.UINT32)),
        "general.base_model.0.name": Value(source.base_name, text),
        "adapter.type": Value("lora", text),
        "adapter.lora.alpha": Value(float(np.float32(_alpha(source))), int(Kind.FLOAT32)),
    }


def adapter_tensors(source: Source, dtype: str) -> Iterator[Planned]:
    """A (rank, in) as blk.N.….weight.lora_a, B (out, rank) as ….lora_b, with q's and k's rows in llama.cpp's order."""
    for name, tensor in source.adapter.parameters.items():
        module, _, part = name.rpartition(".")
        rows = permuted_rows(source.base.config, f"{module}.weight") if part == B else None
        stored = tensor if rows is None else tensor[torch.from_numpy(rows)]
        factor = _factor(source, module) if part == B else 1.0

        def make(stored: torch.Tensor = stored, name: str = name, factor: float = factor) -> Any:
            return encode(stored if math.isclose(factor, 1.0) else stored * factor, dtype, name)

        yield Planned(
            f"{gguf_name(source.base.config, module + '.weight')}.{part.lower()}", tuple(tensor.shape), dtype, make
        )
