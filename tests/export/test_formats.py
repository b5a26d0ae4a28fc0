"""GGUF's number formats in a file of each family: the log-probabilities that llama.cpp gives its answers are ours.

llama.cpp's own quantizer is not in Python packages: the gguf package writes Q4_0 to Q8_0, F16 and BF16, and K-quants
are blocks of random codes under scales that trained weights have. llama.cpp rounds activations to 8 bits before a
product with quantized weights; this engine runs in fp32 here, so the bounds are those of that rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from rescoldo.base.gguf_header import TensorInfo, read_header
from rescoldo.export import export_run
from rescoldo.export.gguf_file import Planned, Value, write_gguf
from rescoldo.models.loaded import load_for_inference
from tests.base.make_models import tiny_hf
from tests.engine.test_families import GEMMA4, GRANITE
from tests.export.common import make_run

pytest.importorskip("xllamacpp")
from tests.base.llama_cpp import LlamaCpp
from tests.export.test_llama_cpp import follow

pytestmark = pytest.mark.slow

WIDE = {  # every row is a whole number of 256-blocks
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
}
GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": 64, "sliding_window": 16}
GEMMA4_WIDE = {"global_head_dim": 128, "hidden_size_per_layer_input": 256}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen3", {}),
    ("granite", GRANITE),
    ("olmo2", {}),
    ("olmo3", {"sliding_window": 16, "num_hidden_layers": 4}),
    ("smollm3", {"num_hidden_layers": 4}),
    ("phi3", {}),
    ("ministral3", {"rope": "ministral"}),
    ("gemma", {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
    ("gemma2", GEMMA),
    ("gemma3_text", {**GEMMA, "rope": "kinds", "num_hidden_layers": 6}),
    ("gemma4_text", {**GEMMA4, "tie_word_embeddings": True, "sliding_window": 16, **GEMMA4_WIDE}),
]
KINDS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# of K-quants: where a block has its half-precision scales, and what they are
SCALES = {
    "Q2_K": {80: 3e-3, 82: 4.5e-3},
    "Q3_K": {108: 1.2e-3},
    "Q4_K": {0: 1.8e-4, 2: 1.35e-3},
    "Q5_K": {0: 9e-5, 2: 1.4e-3},
    "Q6_K": {208: 4e-5},
}


def _encoded(weight: np.ndarray[Any, Any], kind: str, seed: int) -> np.ndarray[Any, Any]:
    """The bytes of a matrix in this format; of K-quants' another random one."""
    number = gguf.GGMLQuantizationType[kind]
    if kind not in SCALES:
        return gguf.quants.quantize(weight, number)
    block, size = gguf.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(seed).integers(0, 256, (weight.size // block, size), dtype=np.uint8)
    for at, scale in SCALES[kind].items():
        raw[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
    return raw


def _in_format(source: Path, path: Path, kind: str) -> Path:
    """The F32 file `source` with its matrices in another format. Returns `path`."""
    header, data = read_header(source), np.memmap(source, np.uint8, "r")
    metadata = {
        key: Value(value.tolist() if isinstance(value, np.ndarray) else value, *header.types[key])
        for key, value in header.metadata.items()
    }

    def planned(number: int, info: TensorInfo) -> Planned:
        numbers = data[info.offset : info.offset + info.n_bytes].view("<f4").reshape(info.shape)
        if len(info.shape) == 1:
            return Planned(info.name, info.shape, "F32", lambda: numbers)
        return Planned(info.name, info.shape, kind, lambda: _encoded(numbers, kind, number))

    write_gguf(path, metadata, [planned(i, info) for i, info in enumerate(header.tensors.values())])
    return path


@pytest.mark.parametrize(("architecture", "overrides"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_formats(tmp_path: Path, architecture: str, overrides: dict[str, Any]) -> None:
    """All formats of a family, along llama.cpp's greedy answers to three prompts, two longer than the window."""
    base = tiny_hf(tmp_path / "hf", architecture, **{**WIDE, **overrides})
    run = make_run(tmp_path / "run", str(base), size=0.0)
    export_run(run, "merged-gguf", dtype="F32")
    draw = torch.Generator().manual_seed(1)
    asked = [torch.randint(3, 275, (n,), generator=draw).tolist() for n in (5, 40, 17)]
    for kind in KINDS:
        path = _in_format(run / "export/merged-gguf/model-F32.gguf", tmp_path / f"{kind}.gguf", kind)
        mine = load_for_inference(str(path), "fp32")
        logits = mine.model.logits(torch.tensor(asked[1]))
        assert logits.std() > 0.1, kind  # or the comparison would say nothing
        found = follow(mine.model, LlamaCpp(path, context=512), asked, 8)
        print(f"{architecture} {kind}: spread {float(logits.std()):.2f}, {found}")
        exact = kind in ("F16", "BF16")
        assert found.largest_difference < (0.05 if exact else 0.3), (kind, found)
        assert found.widest_tie < (0.05 if exact else 0.3), (kind, found)
        assert found.largest_difference > 0, kind  # or llama.cpp has said no log-probability at all
