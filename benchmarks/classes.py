r"""What int8 costs in quality on each class of CPU: its kernels are used one after the other on this machine.

python -m benchmarks.classes --output benchmarks/out/classes.json
python -m benchmarks.classes --sets avx512,avx2 --examples 2 --steps 0 --output benchmarks/out/two-classes.json

For each instruction set that this CPU has: the cosine of the LoRA gradient with float32's and the loss on the first
examples of the BA set, then the validation loss after a short training on the tickets (benchmarks.tickets), one example
a step, the same seed for all. Float32 comes first; a set that is in OUTPUT already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import trial
from benchmarks.kernels import chosen
from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.quality import cosine, gradient
from benchmarks.workloads import examples as read_examples
from rescoldo.base import open_base
from rescoldo.engine.kernels import choose
from rescoldo.engine.kernels.native import NativeKernels
from rescoldo.files import write_json
from rescoldo.system.cgroup import available_threads

SEED, RATE = 1, 1.5e-3


def bits(name: str) -> int:
    """How wide int8's inputs are with the kernels of an instruction set."""
    return NativeKernels(name).qmax.bit_length() + 1


def trained(precision: str, steps: int, folder: Path) -> float:
    """The validation loss of the tickets after so many steps of one example."""
    share = steps / len(trial.data("tickets", folder).train)
    recipe = trial.Trial("tickets", seed=SEED, precision=precision, lr=RATE, step=1, epochs=share, decay="linear")
    return float(trial.run(recipe, folder)["points"][-1]["val_loss"])


def main() -> None:
    """Measure each set and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=chosen, default="", help="instruction sets, with commas (default: all here)")
    parser.add_argument("--examples", type=int, default=4, help="of the gradient")
    parser.add_argument("--steps", type=int, default=50, help="of the training; 0: none")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("peft")
    writable(args.output)
    torch.set_num_threads(args.threads)
    folder = args.output.parent
    base, data = open_base("sample:smollm2"), read_examples("sample:smollm2")
    examples, calibration = data[: args.examples], data[-4:]
    settings = {"examples": args.examples, "steps": args.steps}
    document: dict[str, Any] = {"machine": describe(args.threads), "settings": settings, "rows": {}}
    if args.output.exists():
        known = json.loads(args.output.read_text(encoding="utf-8"))
        if known.get("settings") == settings:
            document["rows"] = known["rows"]
    rows: dict[str, dict[str, Any]] = document["rows"]
    exact_loss, exact = gradient(base, "fp32", examples, calibration)
    for name in ["fp32", *args.sets]:
        if name in rows:
            continue
        precision = "fp32" if name == "fp32" else "int8"
        choose.use(None if name == "fp32" else NativeKernels(name))
        trial.forget()
        loss, ours = (exact_loss, exact) if name == "fp32" else gradient(base, precision, examples, calibration)
        rows[name] = {"cosine": cosine(ours, exact), "loss": loss}
        if name != "fp32":
            rows[name]["input_bits"] = bits(name)
        if args.steps:
            rows[name]["val_loss"] = trained(precision, args.steps, folder)
        write_json(args.output, document)
        print(name, rows[name], flush=True)
    table = Table(
        title=f"int8 by instruction set: gradient of {args.examples} examples, tickets after {args.steps} steps"
    )
    for column in ("", "bits of inputs", "cosine with float32's", "loss", "validation loss of the tickets"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        trained_loss = f"{row['val_loss']:.4f}" if "val_loss" in row else "-"
        table.add_row(name, str(row.get("input_bits", "-")), f"{row['cosine']:.4f}", f"{row['loss']:.4f}", trained_loss)
    Console().print(table)


if __name__ == "__main__":
    main()
