"""Models of real sizes with random weights: the memory of an optimizer step against what `rescoldo plan` foretold.

python -m benchmarks.sizes --model gemma3-4b --model phi4-mini --model ministral3-3b --output benchmarks/out/sizes.json

Each model is written (6 to 8 GB in bfloat16), planned, trained for one step as a user would, and deleted. Memory is
the process's own: pages of mapped files (the base model's) do not count. Precision is int8 where --precision says
nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.models import Weights, tokenizer_file
from benchmarks.needs import require, writable
from benchmarks.workloads import TRAIN, VAL
from rescoldo.base.hf import read_config
from rescoldo.files import cache_root, write_json
from rescoldo.system.cgroup import available_threads

_LONGROPE = {"short_factor": [1.0] * 48, "long_factor": [1.0 + i for i in range(48)]}
# as the models' own config.json says; Mistral's tokenizer of 32,000 tokens serves all of them
MODELS: dict[str, dict[str, Any]] = {
    "gemma3-4b": {
        "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "sliding_window": 1024, "query_pre_attn_scalar": 256, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 6,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
    "phi4-mini": {
        "model_type": "phi3", "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0, "rope_scaling": {"type": "longrope", **_LONGROPE}, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096, "sliding_window": 262144, "tie_word_embeddings": True,
    },
    "ministral3-3b": {
        "model_type": "ministral3", "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 262144, "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_model(directory: Path, sizes: dict[str, Any], *, tokenizer: bool = True) -> None:
    """A Hugging Face directory in bfloat16, a shard for each layer; with Mistral's tokenizer or without any."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16", **sizes}
    (directory / "config.json").write_text(json.dumps(config))
    weights, shards = Weights(), dict[str, dict[str, tuple[int, ...]]]()
    for name, shape in read_config(directory).tensor_shapes().items():
        part = name.split(".")[2] if ".layers." in name else name.split(".")[-2]
        shards.setdefault(f"model-{part}.safetensors", {})[name] = shape
    for file, shapes in shards.items():
        save_file({name: weights.tensor(shape) for name, shape in shapes.items()}, directory / file, {"format": "pt"})
    places = {name: file for file, shapes in shards.items() for name in shapes}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    if not tokenizer:
        return
    shutil.copy(tokenizer_file(), directory / "tokenizer.model")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )


def asked(command: str, flags: list[str]) -> Any:
    """What `rescoldo plan` or `doctor` says in JSON."""
    line = [sys.executable, "-m", "rescoldo", command, *flags, "--json"]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)


def own_memory(pid: int) -> int:
    """Bytes that a process holds for itself, mapped files left out; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def trained(flags: list[str]) -> dict[str, Any]:
    """Train; seconds, and the most memory that the process held."""
    began, peak = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", "rescoldo", "train", *flags], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, own_memory(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"rescoldo train ended with exit code {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 1), "peak_bytes": peak}


def measured(name: str, precision: str, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Write the model, plan, train, delete."""
    directory, output = folder / name, folder / f"{name}-run"
    for old in (directory, output):
        shutil.rmtree(old, ignore_errors=True)
    try:
        write_model(directory, MODELS[name])
        own = [f"--base-model={directory}", f"--quantization={precision}", f"--output={output}", *flags]
        checks = asked("doctor", own)["checks"]
        doctor = next(check["figures"] for check in checks if "peak_bytes" in check["figures"])
        plan = asked("plan", [*own, "--only"])["forecasts"][0]
        run = trained(own)
        return {
            "model": name, "precision": precision, "parameters": read_config(directory).total_params,
            "planned_bytes": plan["peak_memory"], "doctor_bytes": doctor["peak_bytes"],
            "kept_layers": plan["kept_layers"], "ratio": plan["peak_memory"] / run["peak_bytes"],
            "doctor_ratio": doctor["peak_bytes"] / run["peak_bytes"], **run,
        }  # fmt: skip
    finally:
        for left in (directory, output):
            shutil.rmtree(left, ignore_errors=True)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be given again; all where left out")
    parser.add_argument("--precision", choices=["int8", "nf4", "bf16"], default="int8")
    parser.add_argument("--lora-targets", default="attention", help="as in `rescoldo train`")
    parser.add_argument("--folder", type=Path, help="where the models are written; the user's cache if left out")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("mistral_common", "sentencepiece")
    writable(args.output)
    os.environ["RESCOLDO_WEIGHT_CACHE"] = "0"  # nothing of these models is to stay on the disk
    threads = available_threads()
    flags = [
        f"--train={TRAIN}", f"--val={VAL}", "--train-limit=1", "--val-limit=1", "--max-steps=1", "--grad-accum=1",
        f"--lora-targets={args.lora_targets}", f"--threads={threads}",
    ]  # fmt: skip
    folder = args.folder or cache_root() / "benchmarks"
    runs = [measured(name, args.precision, folder, flags) for name in args.model or MODELS]
    write_json(args.output, {"machine": describe(threads), "runs": runs})
    table = Table(title="peak memory of one optimizer step, GB")
    for column in ("", "planned", "doctor", "measured", "planned/measured", "doctor/measured"):
        table.add_column(column, justify="right" if column else "left")
    for run in runs:
        sizes = (f"{run[key] / 1e9:.2f}" for key in ("planned_bytes", "doctor_bytes", "peak_bytes"))
        table.add_row(f"{run['model']} {run['precision']}", *sizes, f"{run['ratio']:.2f}", f"{run['doctor_ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
