"""The task's score through llama.cpp with what was exported, against this engine's: the same prompts, greedy.

python -m benchmarks.served --run artifacts/demo/run --output benchmarks/out/served.json

llama.cpp answers twice: with the adapter on the original GGUF file, and with the merged F16 file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.llama_cpp import server
from benchmarks.needs import require, writable
from benchmarks.workloads import VAL
from rescoldo.base import open_base
from rescoldo.files import write_json
from rescoldo.system.cgroup import available_threads

CONTEXT = 3072  # prompt and answer


def rescoldo(*arguments: str) -> None:
    """Run a command of the program.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, "-m", "rescoldo", *arguments], check=True)


def main() -> None:
    """Export, answer, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run on a GGUF base")
    parser.add_argument("--limit", type=int, default=22, help="validation concepts")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("xllamacpp")
    writable(args.output)
    threads = available_threads()
    base = open_base(json.loads((args.run / "training_info.json").read_text())["base_model"])
    with tempfile.TemporaryDirectory() as folder:
        for kind, dtype in (("gguf-adapter", "F16"), ("merged-gguf", "F16")):
            rescoldo("export", str(args.run), "--to", kind, "--dtype", dtype, "--output", f"{folder}/{kind}")
        (adapter,), (merged,) = (list(Path(folder, kind).glob("*.gguf")) for kind in ("gguf-adapter", "merged-gguf"))
        compared = Path(folder) / "comparison.json"
        common = ["--dataset", str(VAL), "--greedy", "--limit", str(args.limit), "--max-new-tokens", "1024"]
        scores: dict[str, list[float]] = {}
        for name, model, lora in (("adapter on the original", base.path, adapter), ("merged F16", merged, None)):
            with server(model, slots=4, context=CONTEXT, threads=threads, adapter=lora) as url:
                reuse = ["--reuse", str(compared)] if compared.exists() else []
                output = Path(folder) / f"{name.split()[0]}.json"
                there = f"openai:model@{url}/v1"
                rescoldo(
                    "compare",
                    "--baseline",
                    there,
                    "--finetuned",
                    str(args.run),
                    *common,
                    *reuse,
                    "--output",
                    str(output),
                )
            document = json.loads(output.read_text())
            compared = output
            ours, theirs = (
                [one["score"] for one in document["models"][key]["predictions"]] for key in ("finetuned", "baseline")
            )
            scores["rescoldo"], scores[f"llama.cpp, {name}"] = ours, theirs
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    document = {"workload": "smollm2", "run": args.run.name, "means": means, "scores": scores}
    write_json(args.output, document)
    table = Table(title=f"score on {args.limit} validation concepts")
    for column in ("", "mean", "examples that differ"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in scores.items():
        differ = sum(abs(a - b) > 1e-9 for a, b in zip(values, scores["rescoldo"], strict=True))
        table.add_row(name, f"{means[name]:.1%}", str(differ))
    Console().print(table)


if __name__ == "__main__":
    main()
