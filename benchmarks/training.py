r"""Training speed and memory against transformers + PEFT: the two take turns, step by step, on the same examples.

python -m benchmarks.training --workload smollm2 --output benchmarks/out/training-smollm2.json
python -m benchmarks.training --workload mistral7b --layers 4 --peer-run 1 --output benchmarks/out/training-slice.json
python -m benchmarks.training --workload mistral7b --no-peer --rounds 1 --base-model mistral-7b-instruct.gguf \
    --precision nf4 --memory-gb 6 --output benchmarks/out/training-gguf.json
python -m benchmarks.training --workload mistral7b --alone --rounds 1 --output benchmarks/out/training-mistral7b.json

mistral7b is a model of these sizes with random weights (benchmarks.models), written where --base-model says if it is
not there. With --layers the ratio is that of a slice; at full size both do not fit into 24 GB at once: --alone lets
the one end before the other begins. --peer-run N gives the peer a step's first N examples only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.plot import bars
from benchmarks.workloads import add_arguments, base_model, examples
from rescoldo.base import open_base
from rescoldo.engine.auto import measure_products
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.engine.prefix import group_by_prefix
from rescoldo.files import write_json
from rescoldo.system.cgroup import available_threads

JOB = (98, 22, 3)  # the reference job: training examples, validation examples, epochs


class Worker:
    """A running benchmarks.worker."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None, tree: Path | None = None) -> None:
        """Start it, in the checkout `tree` instead of this one where given; its standard error goes to this one's."""
        command = [sys.executable, "-m", "benchmarks.worker", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
        )
        self.load_seconds = float(self.read()["load_seconds"])

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

    def step(self, number: int, kernels: str = "") -> dict[str, Any]:
        """Run one optimizer step, with the kernels of an instruction set where one is named."""
        assert self.process.stdin
        self.process.stdin.write(f"{number} {kernels}".strip() + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def necessary_work(model: str, count: int, steps: list[int]) -> dict[int, float]:
    """For each step number 4·N·(distinct tokens) in operations: N the weights of all layers' linears for every distinct
    token, and the head's for every target token."""
    data, c = examples(model), open_base(model).config
    layers = c.linear_weights
    work = {}
    for number in steps:
        start = number * count % (len(data) - count + 1)
        chosen = data[start : start + count]
        distinct = sum(
            g.length + sum(len(chosen[i].tokens) - g.length for i in g.indices) for g in group_by_prefix(chosen)
        )
        head = c.vocab_size * c.hidden_size * sum(e.n_targets for e in chosen)
        work[number] = 4.0 * (layers * distinct + head)
    return work


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--peer-precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=8, help="examples in an optimizer step")
    parser.add_argument("--peer-run", type=int, help="of which the peer runs only the first so many")
    parser.add_argument("--alone", action="store_true", help="one after the other instead of in turns")
    parser.add_argument("--no-peer", action="store_true", help="without the peer")
    parser.add_argument("--memory-gb", type=float, help="the most that this project's side may take")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("matplotlib", *([] if args.no_peer else ["peft"]))
    writable(args.output)
    model, threads = base_model(args), available_threads()
    shared = ["--workload", args.workload, "--base-model", model]
    shared += ["--examples", str(args.examples), "--threads", str(threads)]
    theirs = ["peft", "--precision", args.peer_precision, *shared]
    theirs += ["--checkpointing"] if args.workload == "mistral7b" else []
    theirs += ["--run", str(args.peer_run)] if args.peer_run else []
    numbers = list(range(args.rounds))
    work = necessary_work(model, args.examples, numbers)
    sides: dict[str, list[dict[str, Any]]] = {"rescoldo": [], "peft": []}
    ours = ["rescoldo", "--precision", args.precision, *shared]
    ours += ["--memory-gb", str(args.memory_gb)] if args.memory_gb else []
    commands = {"rescoldo": ours, "peft": theirs}
    if args.no_peer:
        del sides["peft"], commands["peft"]
    load: dict[str, float] = {}
    for names in [[name] for name in commands] if args.alone else [list(commands)]:
        workers = {name: Worker(*commands[name]) for name in names}
        load |= {name: worker.load_seconds for name, worker in workers.items()}
        if not args.alone:
            for worker in workers.values():
                worker.step(args.rounds)  # not counted: caches, allocators, just-in-time choices
        for number in numbers:
            for name, worker in workers.items():
                sides[name].append(worker.step(number))
        for worker in workers.values():
            worker.close()
    runs: list[dict[str, Any]] = []
    for n in numbers:
        runs.append({**{name: steps[n] for name, steps in sides.items()}, "work": work[n]})
    for run in runs:
        for name in sides:
            run[name]["seconds_per_example"] = run[name]["seconds"] / run[name]["examples"]
        if not args.no_peer:
            run["ratio"] = run["peft"]["seconds_per_example"] / run["rescoldo"]["seconds_per_example"]
    peak = measure_products(768, 4096, 4096, seconds=1.5)
    key = PRECISIONS[args.precision].product
    memory = {side: max(run[side]["peak_memory_bytes"] for run in runs) for side in sides}
    a_step = statistics.median(run["rescoldo"]["seconds"] for run in runs)
    document: dict[str, Any] = {
        "workload": args.workload,
        "layers": args.layers if args.workload == "mistral7b" else None,
        "machine": describe(threads),
        "peer": f"transformers + PEFT, {args.peer_precision}",
        "precision": args.precision,
        "memory_gb": args.memory_gb,
        "examples_per_step": args.examples,
        "load_seconds": load,
        "runs": runs,
        "peak_memory_bytes": memory,
        "peak_products": peak,
        "roofline_share": statistics.median(run["work"] / run["rescoldo"]["seconds"] for run in runs) / peak[key],
        "original_job_hours": job_hours(a_step / args.examples, load["rescoldo"]),
    }
    table = Table(title=f"{args.workload}: {args.precision} against PEFT {args.peer_precision}, {threads} threads")
    for column in ("step", "rescoldo s/example", "PEFT s/example", "ratio", "loss", "PEFT loss"):
        table.add_column(column, justify="right")
    for number, run in enumerate(runs):
        a, b = run["rescoldo"], run.get("peft")
        cells = [f"{a['seconds_per_example']:.2f}", "-", "-", f"{a['loss']:.3f}", "-"]
        if b:
            cells[1:3] = f"{b['seconds_per_example']:.2f}", f"{run['ratio']:.2f}"
            cells[4] = f"{b['loss']:.3f}" if b["examples"] == a["examples"] else "-"
        table.add_row(str(number), *cells)
    console = Console()
    console.print(table)
    said = [f"memory {memory['rescoldo'] / 1e9:.2f} GB"]
    if not args.no_peer:
        ratios = [run["ratio"] for run in runs]
        document["ratio"] = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
        document["memory_ratio"] = memory["rescoldo"] / memory["peft"]
        said[0] += f" against {memory['peft'] / 1e9:.2f} GB"
        said.insert(0, f"median ratio {document['ratio']['median']:.2f}")
    said.append(f"{document['roofline_share']:.0%} of this machine's best {key} products ({peak[key] / 1e9:.0f} G/s)")
    if args.workload == "mistral7b" and args.layers == 32:
        said.append(
            f"the reference job (98 examples, 3 epochs, evaluations) in {document['original_job_hours']:.1f} hours"
        )
    write_json(args.output, document)
    spent = {side: statistics.median(run[side]["seconds_per_example"] for run in runs) for side in sides}
    bars(args.output, f"{args.workload}: training", "seconds an example", spent)
    console.print(", ".join(said))


def job_hours(seconds_per_example: float, load_seconds: float) -> float:
    """The original job from a measured step: an evaluated example is a forward pass, a third of a step at the most (it
    needs no adapter gradients); half a step is counted."""
    train, validation, epochs = JOB
    return (load_seconds + epochs * (train + validation / 2) * seconds_per_example) / 3600


if __name__ == "__main__":
    main()
