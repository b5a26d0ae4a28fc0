"""Training speed and memory against transformers + PEFT: the two take turns, step by step, on the same examples.

python -m benchmarks.training --workload smollm2 --output benchmarks/out/training-smollm2.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from rescoldo.base import open_base
from rescoldo.engine.auto import measure_products
from rescoldo.engine.config import LINEARS
from rescoldo.engine.prefix import group_by_prefix
from rescoldo.files import write_json
from rescoldo.role import get_role
from rescoldo.train.parts import read_dataset
from rescoldo.train.preset import available_threads

TRAIN = Path("artifacts/synthetic/ba_train_v2_fixed.jsonl")
WORKLOADS = {"smollm2": "sample:smollm2"}


class Worker:
    """A running benchmarks.worker."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.read()

    def read(self) -> dict[str, Any]:
        """The worker's next JSON line.

        Raises:
            RuntimeError: the worker has ended (for memory, mostly).
        """
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"worker ended with {self.process.wait()}")

    def step(self, number: int) -> dict[str, Any]:
        """Run one optimizer step."""
        assert self.process.stdin
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def necessary_work(base_model: str, examples: int, steps: list[int]) -> dict[int, float]:
    """For each step number 4·N·(distinct tokens) in operations: N the weights of all layers' linears for every distinct
    token, and the head's for every target token."""
    base = open_base(base_model)
    data = read_dataset(TRAIN, get_role("ba"), base.tokenizer(), 2048, None).examples
    c = base.config
    shapes = [c.linear_shape(name) for name in LINEARS]
    layers = c.n_layers * sum(out * into for out, into in shapes)
    work = {}
    for number in steps:
        start = number * examples % (len(data) - examples + 1)
        chosen = data[start : start + examples]
        distinct = sum(
            g.length + sum(len(chosen[i].tokens) - g.length for i in g.indices) for g in group_by_prefix(chosen)
        )
        head = c.vocab_size * c.hidden_size * sum(e.n_targets for e in chosen)
        work[number] = 4.0 * (layers * distinct + head)
    return work


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="smollm2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--peer-precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=8, help="examples in an optimizer step")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    base_model, threads = WORKLOADS[args.workload], available_threads()
    shared = ["--base-model", base_model, "--examples", str(args.examples), "--threads", str(threads)]
    ours = Worker("rescoldo", "--precision", args.precision, *shared)
    peer = Worker("peft", "--precision", args.peer_precision, *shared)
    numbers = list(range(args.rounds))
    work, runs = necessary_work(base_model, args.examples, numbers), []
    for worker in (ours, peer):
        worker.step(args.rounds)  # not counted: caches, allocators, just-in-time choices
    for number in numbers:
        a, b = ours.step(number), peer.step(number)
        runs.append({"rescoldo": a, "peft": b, "ratio": b["seconds"] / a["seconds"], "work": work[number]})
    ours.close()
    peer.close()
    peak = measure_products(768, 4096, 4096, seconds=1.5)
    key = "int8" if args.precision == "int8" else "fp32" if args.precision == "fp32" else "bf16"
    ratios = [run["ratio"] for run in runs]
    memory = {side: max(run[side]["peak_memory_bytes"] for run in runs) for side in ("rescoldo", "peft")}
    document = {
        "workload": args.workload,
        "machine": describe(threads),
        "peer": f"transformers + PEFT, {args.peer_precision}",
        "precision": args.precision,
        "examples_per_step": args.examples,
        "runs": runs,
        "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
        "peak_memory_bytes": memory,
        "memory_ratio": memory["rescoldo"] / memory["peft"],
        "peak_products": peak,
        "roofline_share": statistics.median(run["work"] / run["rescoldo"]["seconds"] for run in runs) / peak[key],
    }
    write_json(args.output, document)
    table = Table(title=f"{args.workload}: {args.precision} against PEFT {args.peer_precision}, {threads} threads")
    for column in ("step", "rescoldo s/example", "PEFT s/example", "ratio", "loss", "PEFT loss"):
        table.add_column(column, justify="right")
    for number, run in enumerate(runs):
        a, b = run["rescoldo"], run["peft"]
        table.add_row(
            str(number), f"{a['seconds'] / args.examples:.2f}", f"{b['seconds'] / args.examples:.2f}",
            f"{run['ratio']:.2f}", f"{a['loss']:.3f}", f"{b['loss']:.3f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"median ratio {document['ratio']['median']:.2f}, memory {memory['rescoldo'] / 1e9:.2f} GB against "
        f"{memory['peft'] / 1e9:.2f} GB, {document['roofline_share']:.0%} of this machine's best {key} products"
    )


if __name__ == "__main__":
    main()
