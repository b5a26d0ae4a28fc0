"""A GGUF file of a 7B's sizes with random weights, written block by block: for measuring memory, time and disk.

At full size (4.4 GB), by hand:

    python -m tests.export.random_gguf big/base.gguf --layers 32 --type Q4_K_M --run big/run
    /usr/bin/time -v rescoldo export big/run --to merged-gguf --dtype Q8_0
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from rescoldo.base.gguf import gguf_name
from rescoldo.engine.config import DecoderConfig
from rescoldo.export.gguf_file import Planned, Value, write_gguf
from tests.base.make_models import CHATML, _vocabulary

MISTRAL = DecoderConfig("llama", 32000, 4096, 14336, 32, 32, 8, 128, 1e-5, 1e6, 32768)
SCALES = {"Q4_0": {0: 4e-3}, "Q4_K": {0: 4e-5, 2: 2e-4}, "Q6_K": {208: 1e-5}}  # byte → half-precision scale of a block


def block_type(name: str, kind: str) -> str:
    """Q4_K_M keeps some matrices in six bits, as llama.cpp's mix does."""
    if kind != "Q4_K_M":
        return kind
    return "Q6_K" if name == "lm_head.weight" or ".v_proj." in name or ".down_proj." in name else "Q4_K"


def random_blocks(n_bytes: int, kind: str, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random weights of about the size that trained ones have."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = np.frombuffer(np.random.default_rng(seed).bytes(n_bytes), np.uint8).reshape(-1, size).copy()
    for at, scale in SCALES[kind].items():
        blocks[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
    return blocks


def random_gguf(path: Path, *, layers: int, kind: str) -> Path:
    """Write the file; one tensor is in memory at a time. Returns `path`."""
    config = DecoderConfig(**{**MISTRAL.__dict__, "n_layers": layers})
    ids, merges = _vocabulary()
    tokens = [*ids, *(f"<|unused{i}|>" for i in range(config.vocab_size - len(ids)))]
    types = [3] * 3 + [1] * (len(ids) - 3) + [5] * (config.vocab_size - len(ids))
    numbers = {
        "block_count": layers, "context_length": config.max_positions, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
    }  # fmt: skip
    metadata = {"general.architecture": Value("llama", 8)}
    metadata |= {f"llama.{key}": Value(value, 4) for key, value in numbers.items()}
    metadata |= {
        "llama.attention.layer_norm_rms_epsilon": Value(float(np.float32(config.norm_eps)), 6),
        "llama.rope.freq_base": Value(config.rope_theta, 6),
        "tokenizer.ggml.model": Value("gpt2", 8),
        "tokenizer.ggml.pre": Value("smollm", 8),
        "tokenizer.ggml.tokens": Value(tokens, 9, 8),
        "tokenizer.ggml.token_type": Value(types, 9, 5),
        "tokenizer.ggml.merges": Value([f"{left} {right}" for left, right in merges], 9, 8),
        "tokenizer.ggml.eos_token_id": Value(2, 4),
        "tokenizer.chat_template": Value(CHATML, 8),
    }
    tensors = []
    for seed, (name, shape) in enumerate(config.tensor_shapes().items()):
        stored = block_type(name, kind) if len(shape) == 2 else "F32"
        planned = Planned(gguf_name(config, name), shape, stored, lambda: np.empty(0))

        def make(n_bytes: int = planned.n_bytes, stored: str = stored, seed: int = seed) -> Any:
            return np.ones(n_bytes // 4, "<f4") if stored == "F32" else random_blocks(n_bytes, stored, seed)

        tensors.append(Planned(gguf_name(config, name), shape, stored, make))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, metadata, tensors)
    return path


def main() -> None:
    """See the module's docstring."""
    from tests.export.common import make_run

    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--type", default="Q4_K_M", choices=["Q4_0", "Q4_K_M"])
    parser.add_argument("--run", type=Path, help="also a run with a random adapter on it")
    arguments = parser.parse_args()
    random_gguf(arguments.path, layers=arguments.layers, kind=arguments.type)
    if arguments.run:
        make_run(arguments.run, str(arguments.path.resolve()))


if __name__ == "__main__":
    main()
