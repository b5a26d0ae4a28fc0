"""A model of Mistral-7B's sizes with random weights and Mistral's tokenizer, written once, to measure on.

python -m benchmarks.models --output FOLDER/mistral-7b-instruct                      # Hugging Face, 14.5 GB
python -m benchmarks.models --format gguf --output FOLDER/mistral-7b-instruct.gguf   # Q4_0, 4.1 GB
python -m benchmarks.models --format gguf --quantization Q4_K_M --output FOLDER/mistral-7b-instruct.gguf   # 4.4 GB
python -m benchmarks.models --layers 4 --output …                                    # a slice of four layers

The name must say mistral and instruct: that is how Mistral's chat format is recognized.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.needs import require

SIZES = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}  # fmt: skip
_BLOCKS = {"Q4_0": (32, 18), "Q4_K": (256, 144), "Q6_K": (256, 210)}  # weights and bytes of a block
_POOL = 1 << 26  # normal deviates drawn once; each tensor takes them from another place


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hugging Face's names and shapes of all tensors, in the order of the layers."""
    d, f, kv = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_key_value_heads"] * SIZES["head_dim"]
    yield "model.embed_tokens.weight", (int(SIZES["vocab_size"]), int(d))
    for i in range(layers):
        p = f"model.layers.{i}"
        yield f"{p}.input_layernorm.weight", (int(d),)
        for name, out in (("q", d), ("k", kv), ("v", kv), ("o", d)):
            yield f"{p}.self_attn.{name}_proj.weight", (int(out), int(d))
        yield f"{p}.post_attention_layernorm.weight", (int(d),)
        yield f"{p}.mlp.gate_proj.weight", (int(f), int(d))
        yield f"{p}.mlp.up_proj.weight", (int(f), int(d))
        yield f"{p}.mlp.down_proj.weight", (int(d), int(f))
    yield "model.norm.weight", (int(d),)
    yield "lm_head.weight", (int(SIZES["vocab_size"]), int(d))


class Weights:
    """Random tensors, each a function of its place in the order."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.pool = (0.02 * torch.randn(_POOL, generator=generator)).bfloat16()
        self.draw = np.random.default_rng(7)

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Normal with standard deviation 0.02; ones for a norm."""
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        out = torch.empty(shape[0] * shape[1], dtype=torch.bfloat16)
        at = int(self.draw.integers(_POOL))
        for start in range(0, len(out), _POOL):
            n = min(_POOL, len(out) - start)
            first = min(n, _POOL - at)
            out[start : start + first] = self.pool[at : at + first]
            out[start + first : start + n] = self.pool[: n - first]
        return out.view(shape)

    def blocks(self, shape: tuple[int, ...], kind: str) -> np.ndarray[Any, Any]:
        """The bytes of such a tensor in one of GGUF's formats (float32 for a norm): random codes, one scale."""
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        n, size = _BLOCKS[kind]
        raw = self.draw.integers(0, 256, (shape[0] * shape[1] // n, size), dtype=np.uint8)
        halves = {"Q4_0": {0: 0.0043}, "Q4_K": {0: 0.00014, 2: 0.00105}, "Q6_K": {208: 0.00005}}[kind]
        for at, scale in halves.items():  # Q4_K: d, then dmin, which takes about as much as the codes' mean gives
            raw[:, at : at + 2] = np.array([scale], np.float16).view(np.uint8)
        if kind == "Q6_K":
            raw[:, 192:208] = 20  # the sub-blocks' scales
        return raw


def gguf_kind(name: str, layers: int, kind: str) -> str:
    """The format of a tensor in a file of this kind; Q4_K_M gives the head and part of v and down more bits, as
    llama.cpp does."""
    if kind != "Q4_K_M":
        return kind
    if name == "lm_head.weight":
        return "Q6_K"
    if not name.endswith(("v_proj.weight", "down_proj.weight")):
        return "Q4_K"
    i, eighth = int(name.split(".")[2]), layers // 8
    return "Q6_K" if i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2 else "Q4_K"


def tokenizer_file() -> Path:
    """Mistral's v1 SentencePiece model, from the package mistral-common.

    Raises:
        SystemExit: it is not installed.
    """
    require("mistral_common")
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


def write_hf(directory: Path, layers: int) -> None:
    """A Hugging Face directory in bfloat16, a shard for each layer."""
    from safetensors.torch import save_file

    tokenizer = tokenizer_file()  # before 14 GB are written
    directory.mkdir(parents=True, exist_ok=True)
    weights, names = Weights(), list(shapes(layers))
    shards: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in names:
        part = int(name.split(".")[2]) + 1 if ".layers." in name else 0 if "embed" in name else layers + 1
        shards.setdefault(f"model-{part + 1:05d}-of-{layers + 2:05d}.safetensors", []).append((name, shape))
    for shard, content in track(shards.items(), description=f"writing {directory.name}"):
        save_file({name: weights.tensor(shape) for name, shape in content}, directory / shard, {"format": "pt"})
    index = {name: shard for shard, content in shards.items() for name, _ in content}
    total = 2 * sum(int(np.prod(shape)) for _, shape in names)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_hidden_layers": layers,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", **SIZES,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    shutil.copy(tokenizer, directory / "tokenizer.model")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )


def write_gguf(path: Path, layers: int, kind: str) -> None:
    """A GGUF file as Ollama serves them: four-bit weights, embeddings and head included."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from sentencepiece import SentencePieceProcessor

    from rescoldo.families import FAMILIES

    model, weights, sizes = SentencePieceProcessor(model_file=str(tokenizer_file())), Weights(), SIZES
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_name("mistralai_Mistral-7B-Instruct")
    writer.add_context_length(int(sizes["max_position_embeddings"]))
    writer.add_embedding_length(int(sizes["hidden_size"]))
    writer.add_block_count(layers)
    writer.add_feed_forward_length(int(sizes["intermediate_size"]))
    writer.add_head_count(int(sizes["num_attention_heads"]))
    writer.add_head_count_kv(int(sizes["num_key_value_heads"]))
    writer.add_rope_dimension_count(int(sizes["head_dim"]))
    writer.add_rope_freq_base(sizes["rope_theta"])
    writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])
    writer.add_vocab_size(int(sizes["vocab_size"]))
    indices = range(model.get_piece_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in indices])
    writer.add_token_scores([model.get_score(i) for i in indices])
    writer.add_token_types(
        [3 if model.is_control(i) else 2 if model.is_unknown(i) else 6 if model.is_byte(i) else 1 for i in indices]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    names, to_gguf = list(shapes(layers)), FAMILIES["llama"].to_gguf
    for name, shape in names:
        if len(shape) == 1:
            writer.add_tensor_info(to_gguf(name), shape, np.dtype(np.float32), 4 * shape[0])
        else:
            stored = gguf_kind(name, layers, kind)
            row = shape[1] // _BLOCKS[stored][0] * _BLOCKS[stored][1]
            dtype = GGMLQuantizationType[stored]
            writer.add_tensor_info(to_gguf(name), (shape[0], row), np.dtype(np.uint8), shape[0] * row, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in track(names, description=f"writing {path.name}"):
        writer.write_tensor_data(weights.blocks(shape, gguf_kind(name, layers, kind)))
    writer.close()


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["hf", "gguf"], default="hf")
    parser.add_argument("--quantization", choices=["Q4_0", "Q4_K_M"], default="Q4_0", help="of the GGUF file")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.format == "hf":
        write_hf(args.output, args.layers)
    else:
        write_gguf(args.output, args.layers, args.quantization)


if __name__ == "__main__":
    main()
