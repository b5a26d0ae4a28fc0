"""What machine a figure was measured on."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from rescoldo.system import cpu


def describe(threads: int) -> dict[str, Any]:
    """CPU, cores, memory and versions."""
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimddp", "i8mm")
    return {
        "cpu": cpu.model(),
        "instructions": [name for name in wanted if name in cpu.instructions()],
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "torch": torch.__version__,
    }
