"""What machine a figure was measured on, and how fast its matrix products are at their best."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch


def describe(threads: int) -> dict[str, Any]:
    """CPU, cores, memory and versions."""
    model, flags = platform.processor(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = line
    except OSError:
        pass
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return {
        "cpu": model,
        "instructions": [name for name in wanted if f" {name}" in flags],
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "torch": torch.__version__,
    }


def _best(run: Callable[[], object], seconds: float) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def peak_products(rows: int = 768, into: int = 4096, out: int = 4096, seconds: float = 1.5) -> dict[str, float]:
    """This machine's best rate of large products, operations a second, by precision."""
    x, w = torch.randn(rows, into), torch.randn(out, into)
    xb, wb, xi, wi = x.bfloat16(), w.bfloat16(), (20 * x).to(torch.int8), (20 * w).to(torch.int8)
    work = 2.0 * rows * into * out
    return {
        "fp32": work / _best(lambda: x @ w.T, seconds),
        "bf16": work / _best(lambda: xb @ wb.T, seconds),
        "int8": work / _best(lambda: torch._int_mm(xi, wi.T), seconds),
    }
