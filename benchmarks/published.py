"""A published model from beginning to end: trained, scored beside its base, exported, and its answers in llama.cpp.

python -m benchmarks.published --folder benchmarks/out/gemma3 --output benchmarks/out/gemma3.json

Each part is the command that a user would give; interrupted, the same line goes on where it stopped, and an adapter or
comparison that --folder has is not made again. In the end llama.cpp answers with the exported adapter on the base's own
file, and with the merged file; at each position of its greedy answers the engine (fp32, the adapter on the original
weights) says what it would have chosen there. Where the two part, the difference of the engine's logits says how near a
tie it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.llama_cpp import server
from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.workloads import TRAIN, VAL
from rescoldo.data import read_records
from rescoldo.data.tokenize import prompt_ids
from rescoldo.files import write_json
from rescoldo.models.loaded import load_for_inference
from rescoldo.role import get_role
from rescoldo.system.cgroup import available_threads

RECIPE = (
    "--lora-targets=all --lora-r=16 --lora-alpha=64 --grad-accum=4 --warmup=4 --epochs=2 --lr=1e-3 --lora-dropout=0.1"
)


def rescoldo(command: str, *flags: str) -> float:
    """Run it as a user would; its seconds.

    Raises:
        SystemExit: it failed.
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "rescoldo", command, *flags], check=False)
    if done.returncode:
        raise SystemExit(f"rescoldo {command} ended with exit code {done.returncode}")
    return round(time.monotonic() - began, 1)


def answered(url: str, prompt: list[int], tokens: int) -> list[int]:
    """llama.cpp's greedy answer to a prompt, at most so many tokens."""
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True}
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=900) as answer:
        found: list[int] = json.load(answer)["tokens"]
    return found


def followed(model: Any, url: str, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """llama.cpp's answers to the prompts beside the engine's choices along them."""
    positions, alike, parted = 0, [], []
    for prompt in prompts:
        answer = answered(url, prompt, tokens)
        logits = model.logits(torch.tensor(prompt + answer))[len(prompt) - 1 : -1].double()
        wrong = [at for at, token in enumerate(answer) if int(logits[at].argmax()) != token]
        parted += [round(float(logits[at].max() - logits[at, answer[at]]), 4) for at in wrong]
        alike.append(wrong[0] if wrong else len(answer))
        positions += len(answer)
    return {"positions": positions, "same": positions - len(parted), "identical_tokens": alike, "gaps": sorted(parted)}


def in_llama_cpp(run: Path, questions: int, tokens: int, threads: int) -> dict[str, Any]:
    """The exported adapter and the merged file against the engine."""
    loaded, role = load_for_inference(str(run), "fp32"), get_role("ba")
    concepts = [str(record["concept"]) for record in read_records(VAL)[:questions]]
    prompts = [prompt_ids(role.messages({"concept": concept}), loaded.tokenizer) for concept in concepts]
    merged, base = next((run / "export/merged-gguf").glob("*.gguf")), loaded.base.gguf_file
    if base is None:
        raise SystemExit(f"error: {loaded.base.spec} is not a GGUF file, which llama.cpp needs to put the adapter on")
    adapter = next((run / "export/gguf-adapter").glob("*.gguf"))
    found: dict[str, Any] = {}
    for name, file, lora in (("adapter", base, adapter), ("merged", merged, None)):
        with server(file, slots=1, context=4096, threads=threads, adapter=lora) as url:
            found[name] = {"file": file.name, **followed(loaded.model, url, prompts, tokens)}
    return found


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="sample:gemma3-270m")
    parser.add_argument(
        "--folder", type=Path, help="for the run and the comparison; OUTPUT without its ending if left out"
    )
    parser.add_argument("--limit", type=int, default=22, help="validation examples that are answered and scored")
    parser.add_argument("--questions", type=int, default=4, help="of these, answered by llama.cpp, too")
    parser.add_argument("--tokens", type=int, default=256, help="of llama.cpp's answers")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("xllamacpp")
    writable(args.output)
    folder = args.folder or args.output.with_suffix("")
    run, comparison, seconds = folder / "run", folder / "comparison.json", {}
    if not (run / "training_info.json").exists():
        base = f"--base-model={args.base_model}"
        seconds["train"] = rescoldo(
            "train", base, f"--train={TRAIN}", f"--val={VAL}", f"--output={run}", *RECIPE.split()
        )
    seconds["compare"] = rescoldo(
        *("compare", f"--baseline={args.base_model}", f"--finetuned={run}", f"--dataset={VAL}", "--greedy"),
        *("--max-new-tokens=1024", f"--limit={args.limit}", f"--output={comparison}"),
    )
    for kind in ("gguf-adapter", "merged-gguf"):
        seconds[kind] = rescoldo("export", str(run), "--to", kind, "--force")
    threads = available_threads()
    found = in_llama_cpp(run, args.questions, args.tokens, threads)
    write_json(args.output, {"machine": describe(threads), "seconds": seconds, "llama_cpp": found})
    table = Table(title="llama.cpp's greedy answers beside the engine's choices")
    for column in ("", "tokens", "the same", "largest gap of the others, logits", "identical from the start"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in found.items():
        starts = ", ".join(map(str, one["identical_tokens"]))
        gap = f"{max(one['gaps'], default=0.0):.2f}"
        table.add_row(f"{name}: {one['file']}", str(one["positions"]), str(one["same"]), gap, starts)
    Console().print(table)


if __name__ == "__main__":
    main()
