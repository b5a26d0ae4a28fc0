"""Building the C kernels: one library for each instruction set. Needs no torch, so that packaging can call it, too."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

C = Path(__file__).with_name("c")
PACKAGED = Path(__file__).with_name("lib")  # a wheel brings NAME.so of each of its platform's instruction sets
SOURCES = ("attention.c", "blocks.c", "elementwise.c", "int8.c", "layout.c", "threads.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
# a decoded weight is the same number everywhere: no product and sum in one rounding
_CONTRACT = {"blocks.c": "-ffp-contract=off"}
_SECONDS = 300  # for one source
_ROOM = 2_000_000  # bytes that a library and its objects take


ELSEWHERE = "export XDG_CACHE_HOME=/a/folder/that/can/be/written (on a file system that is not mounted noexec)"
INSTALL = "xcode-select --install" if platform.system() == "Darwin" else "apt install gcc"


class BuildError(Exception):
    """Why there are no native kernels here, and what to do about it."""

    def __init__(self, why: str, remedy: str = INSTALL) -> None:
        self.remedy = remedy
        super().__init__(why)


@dataclass(frozen=True)
class InstructionSet:
    """One row of the table: a header in c/isa and what it needs.

    Attributes:
        name: as RESCOLDO_KERNELS takes it.
        header: the file in c/isa with its lane operations and int8 products.
        machine: platform.machine() of the CPUs that have it.
        flags: of the compiler; gcc and clang know them.
        needs: features of the CPU, in /proc/cpuinfo's words.
        slow_on: vendors of CPUs, in /proc/cpuinfo's words, on which those below it are faster.
    """

    name: str
    header: str
    machine: str
    flags: tuple[str, ...]
    needs: frozenset[str]
    slow_on: frozenset[str] = frozenset()


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
# 256 bits where the compiler chooses: sums of plain loops are then the same with all three
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=256")
_NEEDS_AVX2 = frozenset({"avx2", "fma", "f16c"})
_NEEDS_AVX512 = _NEEDS_AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}

_NEEDS_NEON = frozenset({"asimd", "asimddp"})

# the fastest first
INSTRUCTION_SETS = (
    InstructionSet(
        "amx", "amx.h", "x86_64", (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
        _NEEDS_AVX512 | {"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
    ),
    InstructionSet(
        "avx512bf16", "avx512.h", "x86_64", (*_AVX512, "-mavx512bf16"), _NEEDS_AVX512 | {"avx512_bf16"},
        frozenset({"GenuineIntel"}),  # vdpbf16ps at a quarter of vpdpwssd's rate
    ),
    InstructionSet("avx512", "avx512.h", "x86_64", _AVX512, _NEEDS_AVX512),
    InstructionSet("avxvnni", "avxvnni.h", "x86_64", (*_AVX2, "-mavxvnni"), _NEEDS_AVX2 | {"avx_vnni"}),
    InstructionSet("avx2", "avx2.h", "x86_64", _AVX2, _NEEDS_AVX2),
    InstructionSet(
        "neoni8mm", "neoni8mm.h", "aarch64", ("-mcpu=generic+dotprod+i8mm+bf16",), _NEEDS_NEON | {"i8mm", "bf16"}
    ),
    InstructionSet("neon", "neon.h", "aarch64", ("-mcpu=generic+dotprod",), _NEEDS_NEON),
)  # fmt: skip


def instruction_set(name: str) -> InstructionSet:
    """The row of that name.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in INSTRUCTION_SETS}[name]


def usable(features: frozenset[str], machine: str | None = None, vendor: str = "") -> list[InstructionSet]:
    """The rows that a CPU with these features, of this vendor, can run, the fastest first."""
    machine = machine or platform.machine()
    machine = "aarch64" if machine == "arm64" else machine  # macOS's word
    rows = [row for row in INSTRUCTION_SETS if row.machine == machine and row.needs <= features]
    return sorted(rows, key=lambda row: vendor in row.slow_on)


def compiler(target: str | None = None) -> list[str]:
    """The C compiler's command: this machine's own, or for another `target` (as zig names it) the ziglang package's.

    Raises:
        BuildError: there is none.
    """
    if target is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", target]
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if not found:
        raise BuildError("no C compiler (gcc) on this machine")
    return [found]


def _command(target: str | None, isa: InstructionSet, source: str) -> list[str]:
    contract = _CONTRACT.get(source, "-ffp-contract=fast")
    return [*compiler(target), *_FLAGS, *isa.flags, contract, f'-DRESCOLDO_ISA="isa/{isa.header}"']


def assembly(target: str | None, isa: InstructionSet, source: str, out: Path) -> None:
    """Compile one of SOURCES to an assembly file `out`, with the flags that `build` uses.

    Raises:
        BuildError: no compiler, or it failed.
    """
    try:
        _run([*_command(target, isa, source), "-g0", "-S", str(C / source), "-o", str(out)])
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler(target)[0]} failed: {error}") from error


def build(target: str | None, isa: InstructionSet, out: Path) -> None:
    """Compile the kernels for `isa` into the shared library `out`, for this machine or another `target`.

    Raises:
        BuildError: no compiler, or it failed.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            objects = [f"{scratch}/{Path(source).stem}.o" for source in SOURCES]
            for source, made in zip(SOURCES, objects, strict=True):
                _run([*_command(target, isa, source), "-c", str(C / source), "-o", made])
            bare = ["-s"] if target else []  # no symbols but the exported ones: a wheel is downloaded
            _run([*compiler(target), "-shared", *bare, *objects, "-o", f"{scratch}/library", "-lm", "-pthread"])
            os.replace(f"{scratch}/library", out)
    except subprocess.CalledProcessError as error:
        free = _free(out.parent)
        if free is not None and free < _ROOM:  # the compiler's own message names a file that it could not make
            raise BuildError(f"building in {out.parent} failed: the disk is full", ELSEWHERE) from error
        raise BuildError(f"{compiler(target)[0]} failed: {str(error.stderr).strip().splitlines()[-1:]}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"building in {out.parent} failed: {error}", ELSEWHERE) from error


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def library(isa: InstructionSet, folder: Path) -> Path:
    """The library for `isa`: the package's, else built by this machine's compiler, once, in `folder`; where no compiler
    runs, one that was built there from these sources before.

    Raises:
        BuildError: there is none, and no compiler, or it failed.
    """
    packaged = PACKAGED / f"{isa.name}.so"
    if packaged.exists():
        return packaged
    texts = [path.read_text(encoding="utf-8") for path in sorted(C.rglob("*.[ch]"))]
    sources = f"{isa.name}-{_digest(*_FLAGS, *isa.flags, isa.header, repr(_CONTRACT), *texts)}"
    try:
        built = folder / f"{sources}-{_digest(_version(compiler()))}.so"
    except BuildError:
        before = sorted(folder.glob(f"{sources}-*.so"), key=lambda path: path.stat().st_mtime)
        if not before:
            raise
        return before[-1]
    if not built.exists():
        build(None, isa, built)
    return built


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _version(command: Sequence[str]) -> str:
    try:
        return subprocess.run(
            [*command, "--version"], capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=True)
