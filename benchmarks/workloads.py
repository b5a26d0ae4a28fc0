"""What the benchmarks work on: the task's data, the two models and their adapters."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.models import write_gguf, write_hf
from rescoldo.data.dataset import read_dataset
from rescoldo.engine.config import LINEARS
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.files import cache_root
from rescoldo.role import get_role

TRAIN = Path("artifacts/synthetic/ba_train_v2_fixed.jsonl")
VAL = Path("artifacts/synthetic/ba_val_v2_fixed.jsonl")
WORKLOADS = ("smollm2", "mistral7b")
LORA = {  # the sample's preset, and the reference job's
    "smollm2": LoraConfig(rank=16, alpha=64.0, dropout=0.1, targets=LINEARS),
    "mistral7b": LoraConfig(rank=8, alpha=32.0, dropout=0.1, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that decide on the model."""
    parser.add_argument("--workload", choices=WORKLOADS, default="smollm2")
    parser.add_argument("--base-model", help="another model of these sizes; mistral7b: where it is or shall be written")
    parser.add_argument("--layers", type=int, default=32, help="of mistral7b")


def base_model(args: argparse.Namespace) -> str:
    """The model that the arguments name; one of Mistral-7B's sizes is written if it is not there, as a GGUF file where
    the name ends so."""
    if args.workload == "smollm2":
        return args.base_model or "sample:smollm2"
    path = Path(args.base_model or cache_root() / "benchmarks" / f"mistral-7b-instruct-{args.layers}-layers")
    if not path.exists() and path.suffix == ".gguf":
        write_gguf(path, args.layers, "Q4_K_M" if "Q4_K_M" in path.name else "Q4_0")
    elif not path.exists():
        write_hf(path, args.layers)
    return str(path)


def examples(base: str, limit: int | None = None) -> list[Example]:
    """The task's training examples in this model's tokens."""
    from rescoldo.base import open_base

    return read_dataset(TRAIN, get_role("ba"), open_base(base).tokenizer(), 2048, limit).examples
