"""What this machine's processor is and can do, as far as the system says."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def _lines() -> list[str]:
    """/proc/cpuinfo, [] where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


@cache
def identity() -> str:
    """The processor's model and instruction sets: what compiled code and measurements depend on."""
    known = sorted({line for line in _lines() if line.startswith(("flags", "model name", "Features"))})
    return "\n".join(known) if _lines() else platform.processor() + platform.machine()


def model() -> str:
    """The processor's name."""
    for line in _lines():
        if line.startswith(("model name", "Hardware")) and ":" in line:
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def instructions() -> frozenset[str]:
    """The flags of the first core; empty where the system does not tell."""
    for line in _lines():
        if line.startswith(("flags", "Features")) and ":" in line:
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@cache
def fast_bf16() -> bool:
    """Whether bfloat16 products have instructions of their own. False only where they surely have not: PyTorch emulates
    them there at a fraction of float32's speed."""
    words = set(identity().split())
    return not ("avx2" in words and not words & {"avx512_bf16", "amx_bf16", "avx_ne_convert"})
