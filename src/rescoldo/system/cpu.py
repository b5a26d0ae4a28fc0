"""The processor's name and features, as reported by the system."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux


@cache
def _lines() -> list[str]:
    """/proc/cpuinfo, or the equivalent from macOS; [] if the system has neither."""
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return _macos() if platform.system() == "Darwin" else []


# the feature's name in Linux; in macOS on Intel's CPUs, and on Apple's
_SYSCTL = {
    "avx2": "hw.optional.avx2_0",
    "fma": "hw.optional.fma",
    "f16c": "hw.optional.f16c",
    "avx512f": "hw.optional.avx512f",
    "avx512bw": "hw.optional.avx512bw",
    "avx512dq": "hw.optional.avx512dq",
    "avx512vl": "hw.optional.avx512vl",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}


def _macos() -> list[str]:
    """The model and the features from `sysctl`, as lines of /proc/cpuinfo."""
    try:
        said = subprocess.run(
            [shutil.which("sysctl") or "/usr/sbin/sysctl", "machdep.cpu", "hw.optional"],
            stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=False,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    values = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    features = {name for name, key in _SYSCTL.items() if values.get(key, "").strip() == "1"}
    if platform.machine() == "arm64":
        features |= {"asimd", "asimddp"}  # all of Apple's CPUs have them; macOS 11 does not report it
    elif "AVX512VNNI" in values.get("machdep.cpu.leaf7_features", "").split():
        features.add("avx512_vnni")
    return [
        f"vendor_id\t: {values.get('machdep.cpu.vendor', '')}",
        f"model name\t: {values.get('machdep.cpu.brand_string', '')}",
        f"flags\t: {' '.join(sorted(features))}",
    ]


@cache
def identity() -> str:
    """The processor's model and features, which compiled code and measurements depend on."""
    known = sorted({line for line in _lines() if line.startswith(("flags", "model name", "Features"))})
    return "\n".join(known) if _lines() else platform.processor() + platform.machine()


def model() -> str:
    """The processor's name."""
    for line in _lines():
        if line.startswith(("model name", "Hardware")) and ":" in line:
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def vendor() -> str:
    """The processor's vendor, as in /proc/cpuinfo; "" if the system does not report it."""
    for line in _lines():
        if line.startswith("vendor_id") and ":" in line:
            return line.split(":", 1)[1].strip()
    return ""


# from <asm/hwcap.h>: word of the auxiliary vector, bit
_HWCAP = {"asimd": (16, 1), "asimddp": (16, 20), "i8mm": (26, 13), "bf16": (26, 14)}


def instructions() -> frozenset[str]:
    """The CPU's features, named as in /proc/cpuinfo; empty if the system does not report them.

    On ARM Linux they come from _HWCAP, as the kernel reports them to this process: under emulation /proc/cpuinfo is the
    host's.
    """
    if platform.system() == "Linux" and platform.machine() == "aarch64":
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
        return frozenset(name for name, (word, bit) in _HWCAP.items() if getauxval(word) >> bit & 1)
    for line in _lines():
        if line.startswith(("flags", "Features")) and ":" in line:
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@cache
def fast_bf16() -> bool:
    """Whether there are instructions for bfloat16 products. False only if there certainly are none: PyTorch then
    emulates them at a fraction of float32's speed."""
    words = set(identity().split())
    return not ("avx2" in words and not words & {"avx512_bf16", "amx_bf16", "avx_ne_convert"})
