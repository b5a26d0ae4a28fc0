"""What machine a figure was measured on."""

from __future__ import annotations

import platform
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
