"""A training step of the sample with the kernels of each instruction set, in turns, step by step, on the same examples.

python -m benchmarks.kernels --output benchmarks/out/kernels.json
python -m benchmarks.kernels --sets amx,avx2 --against ../before --busy --output benchmarks/out/kernels-before.json

One process takes the instruction sets in turns, a step each in every round; what counts is the median, over the
rounds, of a side's time divided by the first side's in the same round: wall-clock, and CPU time of all threads, which
other load on the machine disturbs less. --against adds a process of another checkout of this project, with the kernels
that it chooses for itself. With --busy each round has a second step of each side beside a process that keeps one core
busy; its time is divided by that of the side's own step before it. No setting of threads is taken from the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.needs import writable
from benchmarks.training import Worker
from rescoldo.engine.kernels.build import INSTRUCTION_SETS, usable
from rescoldo.engine.kernels.choose import VARIABLE
from rescoldo.files import write_json
from rescoldo.system import cpu
from rescoldo.system.cgroup import available_threads

# what sets the number of threads and how they wait
_THREADING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")


@dataclass(frozen=True)
class Side:
    """What is measured: a worker, with the kernels of an instruction set ("": its own choice)."""

    worker: Worker
    kernels: str

    def step(self, number: int) -> dict[str, float]:
        """Run it: seconds of wall-clock and of CPU time, its loss, and the machine's load average then."""
        process = psutil.Process(self.worker.process.pid)
        before = process.cpu_times()
        found, after = self.worker.step(number, self.kernels), process.cpu_times()
        spent = after.user - before.user + after.system - before.system
        return {"seconds": found["seconds"], "cpu_seconds": spent, "loss": found["loss"], "load": os.getloadavg()[0]}


def start(arguments: list[str], tree: Path | None = None) -> Worker:
    """A process of the checkout `tree`, of this one where left out."""
    environment = {name: value for name, value in os.environ.items() if name not in (*_THREADING, VARIABLE)}
    environment["PYTHONPATH"] = str((tree or Path.cwd()) / "src")
    return Worker(*arguments, environment=environment, tree=tree)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A process that keeps one core busy, as long as this lasts."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def summary(runs: list[dict[str, Any]], names: list[str]) -> dict[str, dict[str, float]]:
    """Of each side: median seconds, the medians of its ratios to the first side, and of busy to idle."""
    first, found = names[0], {}
    for name in names:
        row = {"seconds": statistics.median(run[name]["seconds"] for run in runs)}
        for kind in ("seconds", "cpu_seconds"):
            row[f"{kind}_ratio"] = statistics.median(run[name][kind] / run[first][kind] for run in runs)
        if "busy" in runs[0]:
            row["busy_ratio"] = statistics.median(run["busy"][name]["seconds"] / run[name]["seconds"] for run in runs)
        found[name] = row
    return found


def chosen(text: str) -> list[str]:
    """The instruction sets of a list with commas, those that this CPU has where it is empty.

    Raises:
        argparse.ArgumentTypeError: one is unknown, or this CPU does not have it.
    """
    here = [row.name for row in usable(cpu.instructions(), vendor=cpu.vendor())]
    names = [name.strip() for name in text.split(",")] if text else here
    for name in names:
        if name not in here:
            known = name in {row.name for row in INSTRUCTION_SETS}
            why = "this CPU does not have it" if known else "there is no such instruction set"
            raise argparse.ArgumentTypeError(f"{name!r}: {why}; here: {', '.join(here)}")
    return names


def checkout(text: str) -> Path:
    """The folder of a checkout of this project.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    path = Path(text).resolve()
    if not (path / "benchmarks/worker.py").is_file() or not (path / "src/rescoldo").is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a checkout of this project")
    return path


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sets", type=chosen, default="", help="instruction sets, with commas (default: all of this CPU)"
    )
    parser.add_argument("--against", type=checkout, help="another checkout of this project")
    parser.add_argument("--busy", action="store_true", help="also beside a process that keeps one core busy")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--examples", type=int, default=1, help="examples in an optimizer step")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    writable(args.output)
    if not args.sets:
        raise SystemExit("error: there are no kernels for this CPU's instruction sets")
    threads = available_threads()
    arguments = ["rescoldo", "--workload", "smollm2", "--base-model", "sample:smollm2", "--precision", args.precision]
    arguments += ["--examples", str(args.examples), "--threads", str(threads)]
    runs: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        own = start(arguments)
        stack.callback(own.close)
        sides = {name: Side(own, name) for name in args.sets}
        if args.against:
            other = start(arguments, args.against)
            stack.callback(other.close)
            sides["the other checkout"] = Side(other, "")
        for side in sides.values():
            side.step(args.rounds)  # not counted: allocators, threads, the library's first use
        for number in range(args.rounds):
            run: dict[str, Any] = {name: side.step(number) for name, side in sides.items()}
            if args.busy:
                run["busy"] = {}
                for name, side in sides.items():
                    with busy():
                        run["busy"][name] = side.step(number)
            runs.append(run)
            rows = summary(runs, list(sides))
            loads = sorted(one[name]["load"] for one in runs for name in sides)
            document = {
                "workload": "smollm2", "machine": describe(threads), "precision": args.precision,
                "examples_per_step": args.examples, "load": {"min": loads[0], "max": loads[-1]}, "runs": runs,
                "sides": rows,
            }  # fmt: skip
            write_json(args.output, document)  # after each round: what was measured is kept when this is interrupted
    measured = f"{args.precision}, {threads} threads, load {loads[0]:.1f} to {loads[-1]:.1f}"
    table = Table(title=f"a step of {args.examples} in {measured}")
    columns = ["seconds", f"times {args.sets[0]}", "CPU time", *(["beside a busy process"] if args.busy else [])]
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        cells = [f"{row['seconds']:.2f}", f"{row['seconds_ratio']:.2f}", f"{row['cpu_seconds_ratio']:.2f}"]
        table.add_row(name, *cells, *([f"{row['busy_ratio']:.2f}"] if args.busy else []))
    Console().print(table)


if __name__ == "__main__":
    main()
