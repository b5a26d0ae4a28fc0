"""One side of a benchmark, in a process of its own: reads a line with a step's number, runs that optimizer step, prints
how long it took; the name of an instruction set behind the number chooses the kernels. Two workers take turns, so that
both see the same machine; each one's peak memory is its own."""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from benchmarks.workloads import LORA
from benchmarks.workloads import examples as read_examples
from rescoldo.base import open_base
from rescoldo.engine.kernels import choose
from rescoldo.engine.kernels.native import NativeKernels
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.system.memory import limit_process

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0


native = cache(NativeKernels)


class Side(Protocol):
    """Something that trains."""

    def step(self, examples: list[Example], number: int) -> float:
        """One optimizer step; the mean loss over its target tokens."""


class Ours:
    """This project's engine."""

    def __init__(self, spec: str, precision: str, lora: LoraConfig, calibration: list[Example]) -> None:
        from rescoldo.engine.model import LoraModel
        from rescoldo.training.optimizer import AdamW

        self.model = LoraModel.load(open_base(spec), precision, lora, seed=42, calibration=calibration)
        self.optimizer = AdamW(self.model.trained, weight_decay=DECAY)

    def step(self, examples: list[Example], number: int) -> float:
        from rescoldo.engine.step import GradientStep
        from rescoldo.training.optimizer import clip

        run = GradientStep(self.model, examples, step=number, seed=42)
        loss = sum(run.micro_batch([i]) for i in range(len(examples)))
        gradients = run.finish()
        clip(gradients, CLIP)
        self.optimizer.update(gradients, RATE, number + 1)
        self.model.sync()
        return loss / run.total


class Peft:
    """transformers and PEFT, as one would write it: an example at a time, gradients accumulated."""

    def __init__(self, spec: str, precision: str, lora: LoraConfig, checkpointing: bool) -> None:
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM, GgufConfig

        base = open_base(spec)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if base.gguf_file is not None:
            model = AutoModelForCausalLM.from_pretrained(
                base.path.parent, gguf_file=base.path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
            )  # left in its blocks it would unpack them for every product
        else:
            model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.config.use_cache = False
        config = PeftConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets),
            task_type="CAUSAL_LM",
        )  # fmt: skip
        self.model = get_peft_model(model, config).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=DECAY)

    def step(self, examples: list[Example], number: int) -> float:
        torch.manual_seed(number)
        total, n = 0.0, sum(e.n_targets for e in examples)
        for example in examples:
            tokens = torch.tensor([example.tokens])
            labels = tokens.clone()
            labels[0, : example.n_prompt] = -100
            out = self.model(input_ids=tokens, labels=labels, use_cache=False)
            loss: Any = out.loss * (example.n_targets / n)
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def main() -> None:
    """Load, say so, then run the steps asked for on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["rescoldo", "peft"])
    parser.add_argument("--workload", choices=sorted(LORA), required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--examples", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--run", type=int, help="of a step's examples only the first so many")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--longest", action="store_true", help="the longest examples instead of those in order")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limit_process(args.memory_gb)
    data = read_examples(args.base_model)
    if args.longest:
        data.sort(key=lambda example: -len(example.tokens))
    side: Side
    loading = time.perf_counter()
    if args.side == "rescoldo":
        side = Ours(args.base_model, args.precision, LORA[args.workload], data[-4:])
    else:
        side = Peft(args.base_model, args.precision, LORA[args.workload], args.checkpointing)
    print(json.dumps({"load_seconds": time.perf_counter() - loading}), flush=True)
    for asked in sys.stdin:
        first, _, name = asked.strip().partition(" ")
        number = int(first)
        if name:
            choose.use(native(name))
        start = number * args.examples % (len(data) - args.examples + 1)
        examples = data[start : start + args.examples][: args.run]
        began = time.perf_counter()
        loss = side.step(examples, number)
        seconds = time.perf_counter() - began
        memory = psutil.Process().memory_info()
        peak = _peak() or memory.rss
        tokens = sum(len(e.tokens) for e in examples)
        line = {
            "seconds": seconds,
            "examples": len(examples),
            "loss": loss,
            "tokens": tokens,
            "peak_memory_bytes": peak,
        }
        print(json.dumps(line), flush=True)


def _peak() -> int | None:
    """The process's largest resident size so far, in bytes, where the system tells."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


if __name__ == "__main__":
    main()
