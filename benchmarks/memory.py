r"""Peak memory of one optimizer step, loading included, in each precision and against transformers + PEFT.

python -m benchmarks.memory --workload smollm2 --output benchmarks/out/memory-smollm2.json
python -m benchmarks.memory --workload mistral7b --base-model mistral-7b-instruct-Q4_0.gguf --precision int8 \\
    --memory-gb 6 --no-peer --output benchmarks/out/memory-gguf.json

Each side runs alone in a process of its own; what counts is its largest resident size, mapped files included. The step
takes the examples that are the longest. PEFT runs in bfloat16, with gradient checkpointing at mistral7b.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.plot import bars
from benchmarks.training import Worker
from benchmarks.workloads import add_arguments, base_model
from rescoldo.files import write_json
from rescoldo.system.cgroup import available_threads


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--precision", action="append", help="of this project's side; may be given again")
    parser.add_argument("--memory-gb", type=float, help="the most that this project's side may take")
    parser.add_argument("--examples", type=int, default=2, help="examples in the step: the longest there are")
    parser.add_argument("--no-peer", action="store_true", help="without the peer")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("matplotlib", *([] if args.no_peer else ["peft"]))
    writable(args.output)
    model, threads = base_model(args), available_threads()
    shared = ["--workload", args.workload, "--base-model", model, "--longest"]
    shared += ["--examples", str(args.examples), "--threads", str(threads)]
    limit = ["--memory-gb", str(args.memory_gb)] if args.memory_gb else []
    commands = {f"rescoldo {p}": ["rescoldo", "--precision", p, *shared, *limit] for p in args.precision or ["int8"]}
    if not args.no_peer:
        checkpointing = ["--checkpointing"] if args.workload == "mistral7b" else []
        commands["peft bf16"] = ["peft", "--precision", "bf16", *shared, *checkpointing]
    runs: list[dict[str, Any]] = []
    for name, command in commands.items():
        worker = Worker(*command)
        runs.append({"side": name, "load_seconds": worker.load_seconds, **worker.step(0)})
        worker.close()
    peaks = {run["side"]: run["peak_memory_bytes"] for run in runs}
    document: dict[str, Any] = {
        "workload": args.workload, "machine": describe(threads), "peer": "transformers + PEFT, bf16",
        "memory_gb": args.memory_gb, "base_model": Path(model).name, "runs": runs, "peak_memory_bytes": peaks,
    }  # fmt: skip
    table = Table(title=f"{args.workload}: peak memory of a step of {args.examples} examples")
    for column in ("", "GB", "s/example", "times less than PEFT"):
        table.add_column(column, justify="right" if column else "left")
    theirs = peaks.get("peft bf16")
    for run in runs:
        less = f"{theirs / run['peak_memory_bytes']:.2f}" if theirs else "-"
        seconds = run["seconds"] / run["examples"]
        table.add_row(run["side"], f"{run['peak_memory_bytes'] / 1e9:.2f}", f"{seconds:.1f}", less)
    if theirs:
        ratios = sorted(theirs / peak for side, peak in peaks.items() if side != "peft bf16")
        document["ratio"] = {"min": ratios[0], "median": ratios[len(ratios) // 2], "max": ratios[-1]}
    write_json(args.output, document)
    bars(args.output, f"{args.workload}: peak memory", "GB", {name: peak / 1e9 for name, peak in peaks.items()})
    Console().print(table)


if __name__ == "__main__":
    main()
