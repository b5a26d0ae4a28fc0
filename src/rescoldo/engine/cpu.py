"""What this machine's processor is and can do, as far as the system says."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def identity() -> str:
    """The processor's model and instruction sets: what compiled code and measurements depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


@cache
def fast_bf16() -> bool:
    """Whether bfloat16 products have instructions of their own. False only where they surely have not: PyTorch emulates
    them there at a fraction of float32's speed."""
    words = set(identity().split())
    return not ("avx2" in words and not words & {"avx512_bf16", "amx_bf16", "avx_ne_convert"})
