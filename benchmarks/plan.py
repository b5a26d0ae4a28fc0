"""What `rescoldo plan` foretells of a step against the step itself, in each precision.

python -m benchmarks.plan --workload smollm2 --output benchmarks/out/plan-smollm2.json
python -m benchmarks.plan --workload mistral7b --layers 2 --precision int8 --output benchmarks/out/plan-layers.json

A plan, a run of two steps, and a plan again, as machines have moods; the mean of both plans is what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.plot import bars
from benchmarks.workloads import TRAIN, VAL, add_arguments, base_model
from rescoldo.files import write_json
from rescoldo.run.layout import read_timings
from rescoldo.system.cgroup import available_threads

STEPS = 2


def rescoldo(*arguments: str) -> str:
    """What the command prints on standard output.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "rescoldo", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(precision: str, flags: list[str]) -> dict[str, Any]:
    """Seconds a step, planned before and after, and real."""
    with tempfile.TemporaryDirectory() as folder:
        own = [*flags, f"--quantization={precision}", f"--output={folder}/out"]

        def plan() -> dict[str, Any]:
            return dict(json.loads(rescoldo("plan", *own, "--only", "--json")))

        before = plan()
        rescoldo("train", *own)
        after = plan()
        steps = [line["seconds"] for line in read_timings(Path(folder) / "out") if line["event"] == "step"]
    planned = [found["forecasts"][0]["step"] for found in (before, after)]
    real = statistics.mean(steps)
    return {
        "precision": precision, "planned": planned, "real": steps, "ratio": statistics.mean(planned) / real,
        "measured_in": before["measured_in"],
    }  # fmt: skip


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--precision", action="append", help="may be given again; all four where left out")
    parser.add_argument("--examples", type=int, default=4, help="examples in an optimizer step")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("matplotlib")
    writable(args.output)
    threads = available_threads()
    flags = [
        f"--train={TRAIN}", f"--val={VAL}", f"--train-limit={STEPS * args.examples}", "--val-limit=2",
        f"--max-steps={STEPS}", f"--grad-accum={args.examples}", f"--base-model={base_model(args)}",
        f"--threads={threads}",
    ]  # fmt: skip
    runs = [measured(precision, flags) for precision in args.precision or ("fp32", "bf16", "int8", "nf4")]
    ratios = sorted(run["ratio"] for run in runs)
    document = {
        "workload": args.workload, "machine": describe(threads), "peer": "the run itself", "runs": runs,
        "ratio": {"min": ratios[0], "median": statistics.median(ratios), "max": ratios[-1]},
    }  # fmt: skip
    table = Table(title=f"{args.workload}: planned and real, {args.examples} examples a step, {threads} threads")
    for column in ("precision", "planned, s a step", "real, s a step", "planned / real", "plan took, s"):
        table.add_column(column, justify="right" if column != "precision" else "left")
    for run in runs:
        cells = [", ".join(f"{seconds:.2f}" for seconds in run[name]) for name in ("planned", "real")]
        table.add_row(run["precision"], *cells, f"{run['ratio']:.2f}", f"{run['measured_in']:.0f}")
    Console().print(table)
    write_json(args.output, document)
    bars(args.output, f"{args.workload}: planned / real", "ratio", {run["precision"]: run["ratio"] for run in runs})


if __name__ == "__main__":
    main()
