"""Decoding the 22 validation prompts together: this engine (free, and constrained to the role's grammar; greedily, and
sampled several times), transformers' batched generate, llama.cpp's parallel slots.

python -m benchmarks.decoding --workload smollm2 --output benchmarks/out/decoding-smollm2.json

They take turns. All but the sampled sides decode greedily, `--tokens` new tokens a prompt, whether or not an end comes;
the time is that of everything, prompts included. llama.cpp takes the file as it is (Q4_1), transformers --peer-dtype.
Processor time a token is told beside it, which other programs disturb least (with --threads 1: threads that wait count,
too); --alone leaves the other engines out.

--kernels avx2 measures what a CPU with AVX2 alone would do: this engine's kernels for it, and PyTorch held to it by its
environment. xllamacpp's wheel is built for AVX2 whatever the CPU has; the output says so in its own words.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.llama_cpp import server
from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.plot import bars
from benchmarks.workloads import VAL, examples
from rescoldo.base import open_base
from rescoldo.constrain import Compiler
from rescoldo.data import read_records
from rescoldo.data.tokenize import prompt_ids, stop_ids
from rescoldo.engine.generate import generate
from rescoldo.engine.kernels.choose import VARIABLE, kernels
from rescoldo.engine.model import LoraModel
from rescoldo.engine.types import Sampling
from rescoldo.files import write_json
from rescoldo.role import get_role
from rescoldo.role.grammar import role_grammar
from rescoldo.system.cgroup import available_threads

Prompts = list[list[int]]
# what holds PyTorch's own products to an instruction set; read when it is imported
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}

FREE, HELD, SAMPLED, SAMPLED_HELD = (
    "rescoldo", "rescoldo, constrained", "rescoldo, sampled", "rescoldo, sampled, constrained",
)  # fmt: skip


def rescoldo(precision: str, tokens: int, temperature: float, samples: int) -> dict[str, Callable[[Prompts], int]]:
    """This engine, free and constrained, greedy and sampled `samples` times; the functions decode and say how many
    tokens."""
    base = open_base("sample:smollm2")
    model = LoraModel.load(base, precision, None, seed=0, calibration=examples(base.spec, 4))
    tokenizer, grammar = base.tokenizer(), role_grammar(get_role("ba"))
    compiler = Compiler(tokenizer, base.config.vocab_size, stop_ids(tokenizer))
    greedy = [Sampling(temperature=0.0, max_new_tokens=tokens)]
    sampled = [Sampling(temperature=temperature, max_new_tokens=tokens, seed=seed) for seed in range(samples)]

    def side(samplings: Sequence[Sampling], held: bool) -> Callable[[Prompts], int]:
        constrain = (lambda: compiler.start(grammar)) if held else None
        return lambda prompts: sum(
            len(row.tokens)
            for sampling in samplings
            for row in generate(model, prompts, sampling, frozenset(), None, constrain)
        )

    return {
        FREE: side(greedy, False), HELD: side(greedy, True),
        SAMPLED: side(sampled, False), SAMPLED_HELD: side(sampled, True),
    }  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def transformers(dtype: torch.dtype, tokens: int) -> Callable[[Prompts], int]:
    """transformers' generate, the prompts padded on the left."""
    from transformers import AutoModelForCausalLM

    base = open_base("sample:smollm2")
    model = AutoModelForCausalLM.from_pretrained(base.path.parent, gguf_file=base.path.name, dtype=dtype).eval()

    def run(prompts: Prompts) -> int:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0
            )
        return int((out.shape[1] - longest) * len(prompts))

    return run


def llama_cpp(url: str, tokens: int) -> Callable[[Prompts], int]:
    """llama.cpp's server, asked for all prompts at once."""

    def ask(prompt: list[int]) -> int:
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        content = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/completion", json.dumps(body).encode(), content)
        with urllib.request.urlopen(request, timeout=1200) as answer:
            return int(json.load(answer)["tokens_predicted"])

    def run(prompts: Prompts) -> int:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return sum(pool.map(ask, prompts))

    return run


def processor_seconds() -> float:
    """Of this process and of the servers that it has started."""
    processes = [psutil.Process(), *psutil.Process().children()]
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def peers(dtype: str) -> dict[str, str]:
    """What the other engines compute with, in their own words."""
    import xllamacpp

    return {
        "transformers": f"{dtype}, PyTorch's {torch.backends.cpu.get_cpu_capability()}",
        "llama.cpp": f"Q4_1, {xllamacpp.get_system_info().strip()}",
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=["smollm2"], default="smollm2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--peer-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a prompt")
    parser.add_argument("--prompts", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.7, help="of the sampled sides")
    parser.add_argument("--samples", type=int, default=3, help="answers to a prompt, of the sampled sides")
    parser.add_argument("--kernels", default="", help="this engine's, by name; avx2 limits the other engines, too")
    parser.add_argument("--threads", type=int, default=0, help="default: all")
    parser.add_argument("--alone", action="store_true", help="leave the other engines out")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("matplotlib", *([] if args.alone else ["xllamacpp"]))
    writable(args.output)
    limits = LIMITS.get(args.kernels, {})
    if any(os.environ.get(name) != value for name, value in limits.items()):
        again = [sys.executable, "-m", "benchmarks.decoding", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **limits})
    if args.kernels:
        os.environ[VARIABLE] = args.kernels
    threads = args.threads or available_threads()
    torch.set_num_threads(threads)
    tokenizer, role = open_base("sample:smollm2").tokenizer(), get_role("ba")
    prompts = [prompt_ids(role.messages(record), tokenizer) for record in read_records(VAL, role)[: args.prompts]]
    longest = max(map(len, prompts)) + args.tokens + 8
    rates: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}  # of processor time a token
    with ExitStack() as stack:
        sides = rescoldo(args.precision, args.tokens, args.temperature, args.samples)
        if not args.alone:
            path = open_base("sample:smollm2").path
            url = stack.enter_context(server(path, slots=len(prompts), context=longest, threads=threads))
            sides["transformers"] = transformers(getattr(torch, args.peer_dtype), args.tokens)
            sides["llama.cpp"] = llama_cpp(url, args.tokens)
        sides[FREE](prompts), sides[HELD](prompts)  # not counted: the kernels' and the lexer's first use
        for _ in range(args.rounds):
            for name, run in sides.items():
                began, busy = time.perf_counter(), processor_seconds()
                decoded = run(prompts)
                seconds.setdefault(name, []).append((processor_seconds() - busy) / decoded)
                rates.setdefault(name, []).append(decoded / (time.perf_counter() - began))
    ratios = {name: spread([a / b for a, b in zip(rates[FREE], rates[name], strict=True)]) for name in rates}
    document: dict[str, Any] = {
        "workload": args.workload, "machine": describe(threads),
        "peers": None if args.alone else peers(args.peer_dtype),
        "kernels": kernels().name, "precision": args.precision, "prompts": len(prompts), "new_tokens": args.tokens,
        "temperature": args.temperature, "samples": args.samples,
        "runs": [{name: rates[name][i] for name in rates} for i in range(args.rounds)],
        "ratio": ratios.get("transformers"),
        "ratio_llama_cpp": ratios.get("llama.cpp"),
        "ratio_constrained": ratios[HELD],
        "processor_seconds_a_token": {name: spread(values) for name, values in seconds.items()},
        # constrained / free: below 1.1 a constraint costs less than 10 %
        "processor_time_constrained": {
            kind: spread([held / free for free, held in zip(seconds[without], seconds[with_], strict=True)])
            for kind, without, with_ in (("greedy", FREE, HELD), ("sampled", SAMPLED, SAMPLED_HELD))
        },
    }  # fmt: skip
    write_json(args.output, document)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    bars(args.output, f"{len(prompts)} prompts at once", "new tokens a second, prompts included", middle)
    table = Table(title=f"{len(prompts)} prompts, {args.tokens} new tokens each, {threads} threads")
    for column in ("", "tokens/s", "rescoldo is faster by", "processor ms a token"):
        table.add_column(column, justify="right" if column else "left")

    for name, values in rates.items():
        busy = f"{1000 * statistics.median(seconds[name]):.2f}"
        table.add_row(name, f"{statistics.median(values):.0f}", f"{ratios[name]['median']:.2f}x", busy)
    Console().print(table)
    for name, words in (document["peers"] or {}).items():
        print(f"{name}: {words}")
    for kind, cost in document["processor_time_constrained"].items():
        print(
            f"constrained / free, {kind}, processor time: {cost['median']:.2f} ({cost['min']:.2f} to {cost['max']:.2f})"
        )


if __name__ == "__main__":
    main()
