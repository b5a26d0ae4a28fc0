"""What a family costs: its optimizer step against that of a llama with the same sizes, in turns, in processor time.

python -m benchmarks.families --family gemma3_text --family phi3 --output benchmarks/out/families.json

Random weights, four layers, a small vocabulary: the head's part would be the same. One thread, two examples of 800
tokens that share their first 200, rank 16 on all linears.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.needs import writable
from benchmarks.sizes import write_model
from rescoldo.base import open_base
from rescoldo.engine.model import LoraModel
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.files import write_json

SIZES = {
    "vocab_size": 2048, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
WINDOWS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.06},
    "olmo2": {},
    "olmo3": {"sliding_window": 512, "layer_types": WINDOWS},
    "smollm3": {},
    "phi3": {"partial_rotary_factor": 0.75},
    "ministral3": {},
    "gemma": {"hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {"sliding_window": 512, "query_pre_attn_scalar": 256},
    "gemma3_text": {"sliding_window": 512, "layer_types": WINDOWS, "query_pre_attn_scalar": 256},
    "gemma4_text": {  # without the layers' own embeddings and MLPs of two widths, which are more work
        "sliding_window": 512, "layer_types": WINDOWS, "global_head_dim": 256, "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 2048,
    },
}  # fmt: skip


def examples() -> list[Example]:
    """Two, with a common beginning."""
    draw = torch.Generator().manual_seed(0)
    shared = torch.randint(0, 2048, (200,), generator=draw).tolist()
    return [Example((*shared, *torch.randint(0, 2048, (600,), generator=draw).tolist()), 350) for _ in range(2)]


def load(directory: Path, model_type: str, precision: str) -> LoraModel:
    """A model of this type with these sizes, written into `directory`."""
    write_model(directory, {**SIZES, **FAMILIES.get(model_type, {}), "model_type": model_type}, tokenizer=False)
    base = open_base(str(directory))
    lora = LoraConfig(rank=16, alpha=64.0, dropout=0.1, targets=base.config.linears)
    return LoraModel.load(base, precision, lora, seed=0, calibration=examples()[:1])


def step(model: LoraModel) -> float:
    """Forward and backward of one step, in seconds of processor time."""
    began = time.process_time()
    both = examples()
    run = GradientStep(model, both, step=0, seed=0)
    for i in range(len(both)):
        run.micro_batch([i])
    run.finish()
    return time.process_time() - began


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="may be given again; all where left out")
    parser.add_argument("--precision", choices=["int8", "bf16"], default="int8")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    writable(args.output)
    torch.set_num_threads(1)
    names = args.family or list(FAMILIES)
    with tempfile.TemporaryDirectory() as folder:
        models = {name: load(Path(folder) / name, name, args.precision) for name in ("llama", *names)}
    for model in models.values():
        step(model)  # caches, just-in-time choices
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            seconds[name].append(step(model))
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["llama"], strict=True)) for name in names
    }
    document = {"precision": args.precision, "machine": describe(1), "seconds": seconds, "ratios": ratios}
    write_json(args.output, document)
    table = Table(title=f"a step against llama's with the same sizes, {args.precision}")
    for column in ("", "seconds, median", "times llama's"):
        table.add_column(column, justify="right" if column else "left")
    for name, several in seconds.items():
        table.add_row(name, f"{statistics.median(several):.2f}", f"{ratios.get(name, 1.0):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
