r"""What an example costs in an optimizer step: this engine and transformers + PEFT, in turns in one process.

python -m benchmarks.costs --task tickets --output benchmarks/out/costs.json
python -m benchmarks.costs --task ba --sizes 1,8 --cpu avx2 --rounds 5 --output benchmarks/out/costs-avx2.json

--cpu limits both sides to a class of CPU: this engine's kernels, PyTorch's own loops, oneDNN's and MKL's. So a table of
classes can be made on one machine whose CPU has all of them; it says what instructions are worth, not how fast another
CPU runs them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.kernels import positive
from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.trial import TASKS, Ours, Side, Theirs, Trial, data, frozen, optimizer
from rescoldo.engine.kernels.build import usable
from rescoldo.engine.kernels.choose import VARIABLE
from rescoldo.files import write_json
from rescoldo.system import cpu
from rescoldo.system.cgroup import available_threads

RATE = 1e-6
LIMITED = "RESCOLDO_BENCHMARK_CPU"  # the class that this process was started for


@dataclass(frozen=True)
class Class:
    """A class of CPU.

    Attributes:
        kernels: this engine's, and the name of the class.
        environment: limits PyTorch and its libraries.
        peers: precisions of transformers + PEFT; bf16 is left out where it is emulated.
    """

    kernels: str
    environment: dict[str, str] = field(default_factory=dict)
    peers: tuple[str, ...] = ("fp32",)


CLASSES = {
    row.kernels: row
    for row in (
        Class("amx", peers=("bf16", "fp32")),
        Class("avx512bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, ("bf16", "fp32")),
        Class("avx512", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}),
        Class(
            "avx2",
            {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        ),
    )
}


def here() -> list[str]:
    """The classes that this CPU can stand for."""
    names = {row.name for row in usable(cpu.instructions(), vendor=cpu.vendor())}
    return [name for name in CLASSES if name in names]


def measure(task: str, sizes: Sequence[int], peers: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds an example of an optimizer step, one uncounted step of each first.

    The examples are those whose length is nearest to the mean. PEFT computes an example at a time whatever the step
    size, so a step of one stands for all; clipping and AdamW are left out of its time, and counted in this engine's.

    Args:
        sizes: examples in a step of this engine (int8).
        peers: precisions of transformers + PEFT.

    Returns:
        "rescoldo int8, 4" or "peft bf16" → {"seconds", "cpu_seconds"} an example, one of each for each round.
    """
    examples = data(task, folder).train
    mean = sum(len(e.tokens) for e in examples) / len(examples)
    typical = sorted(examples, key=lambda e: abs(len(e.tokens) - mean))
    ours = Ours(Trial(task), frozen(task, "int8", folder))
    update = optimizer(Trial(task), ours.parameters)
    sides: dict[str, tuple[Side, int]] = {f"rescoldo int8, {size}": (ours, size) for size in sizes}
    sides |= {f"peft {name}": (Theirs(Trial(task, engine="peft", precision=name)), 1) for name in peers}
    found: dict[str, Any] = {name: {"seconds": [], "cpu_seconds": []} for name in sides}
    for number in range(rounds + 1):
        for name, (side, size) in sides.items():
            began = time.perf_counter(), time.process_time()
            side.gradients(typical[:size], number)
            if side is ours:
                torch.nn.utils.clip_grad_norm_(ours.parameters.values(), 1.0)
                update(RATE)
            side.changed()
            spent = time.perf_counter() - began[0], time.process_time() - began[1]
            if number:
                found[name]["seconds"].append(spent[0] / size)
                found[name]["cpu_seconds"].append(spent[1] / size)
    return found


def of_class(name: str, task: str, sizes: Sequence[int], rounds: int, threads: int, output: Path) -> dict[str, Any]:
    """What `measure` returns in a process that is limited to a class of CPU.

    Raises:
        SystemExit: the process failed; it has said why.
    """
    command = [sys.executable, "-m", "benchmarks.costs", "--task", task, "--sizes", ",".join(map(str, sizes))]
    command += ["--cpu", name, "--rounds", str(rounds), "--threads", str(threads), "--output", str(output)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"error: measuring {task} with {name} failed")
    return dict(json.loads(output.read_text(encoding="utf-8"))["an_example"])


def _sizes(text: str) -> list[int]:
    return [positive(word) for word in text.split(",")]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="ba")
    parser.add_argument("--sizes", type=_sizes, default=[1, 8], help="examples in a step, with commas (default: 1,8)")
    parser.add_argument("--cpu", choices=here(), default=(here() or [None])[0], help="default: this CPU's own class")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=available_threads())
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("peft")
    writable(args.output)
    if not args.cpu:
        raise SystemExit("error: there are no kernels for this CPU's instruction sets")
    row = CLASSES[args.cpu]
    if os.environ.get(LIMITED) != row.kernels:  # libraries read these when they are loaded
        environment = {**os.environ, **row.environment, VARIABLE: row.kernels, LIMITED: row.kernels}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.costs", *sys.argv[1:]], environment)
    torch.set_num_threads(args.threads)
    found = measure(args.task, args.sizes, row.peers, args.rounds, args.output.parent)
    document = {"machine": describe(args.threads), "task": args.task, "cpu": row.kernels, "an_example": found}
    write_json(args.output, document)
    table = Table(title=f"{args.task}, limited to {row.kernels}, {args.threads} threads: an example, median")
    for column in ("", "seconds", "CPU seconds"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in found.items():
        table.add_row(name, *(f"{statistics.median(values[kind]):.2f}" for kind in ("seconds", "cpu_seconds")))
    Console().print(table)


if __name__ == "__main__":
    main()
