"""Which implementation of the operations is in use: the kernels for one of the CPU's instruction sets, or PyTorch's."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import cache

import torch

from rescoldo.engine.kernels.blocks import Matrix
from rescoldo.engine.kernels.build import INSTRUCTION_SETS, BuildError, InstructionSet, library, usable
from rescoldo.engine.kernels.native import NativeKernels
from rescoldo.engine.kernels.selftest import remembered
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.errors import RescoldoError
from rescoldo.files import cache_root
from rescoldo.invocation import program
from rescoldo.system import cpu

VARIABLE = "RESCOLDO_KERNELS"
_used: TorchKernels | None = None


@dataclass(frozen=True)
class Choice:
    """What this machine is to use.

    Attributes:
        kernels: the operations.
        passed_over: names of faster ones that the CPU has instructions for, and why they are not used; "native" where
            none can be.
        remedy: what would let faster ones be used.
    """

    kernels: TorchKernels
    passed_over: dict[str, str]
    remedy: str = ""


@cache
def choice() -> Choice:
    """The fastest kernels that this CPU can run, that can be built or came with the package, and that pass their test;
    those that $RESCOLDO_KERNELS names, without a choice; else PyTorch's.

    Raises:
        RescoldoError: $RESCOLDO_KERNELS names none, or some that cannot run here.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted == "torch":
        return Choice(TorchKernels(), {})
    rows = usable(cpu.instructions(), vendor=cpu.vendor())
    if wanted:
        known = [row.name for row in INSTRUCTION_SETS]
        if wanted not in known:
            raise RescoldoError(f"invalid value {wanted!r}: expected torch, {', '.join(known)}", where=VARIABLE)
        rows = [row for row in rows if row.name == wanted]
        if not rows:
            raise RescoldoError(f"this CPU does not have the instructions that {wanted!r} needs", where=VARIABLE)
    passed_over: dict[str, str] = {}
    remedy = ""
    for row in rows:
        try:
            return Choice(_tested(row), passed_over, remedy)
        except BuildError as error:
            passed_over[row.name] = str(error)
            remedy = remedy or error.remedy
    if wanted:
        raise RescoldoError(
            f"{wanted!r} cannot be used: {passed_over[wanted]}", where=VARIABLE, fix=f"unset {VARIABLE}"
        )
    reasons = {*passed_over.values()} or {"there are none for this CPU's instruction sets"}
    return Choice(TorchKernels(), {"native": "; ".join(sorted(reasons))}, remedy)


def _tested(isa: InstructionSet) -> NativeKernels:
    folder = cache_root(loadable=True) / "kernels"
    wrong = remembered(library(isa, folder), lambda: NativeKernels(isa.name), folder, isa.name)
    if wrong:
        raise BuildError(f"they fail their self-test ({wrong})", f"report it, with the output of: {program()} doctor")
    return NativeKernels(isa.name)


def kernels() -> TorchKernels:
    """The operations to use; says on standard error, once, where they are slower than they could be.

    Raises:
        RescoldoError: $RESCOLDO_KERNELS names none, or some that cannot run here.
    """
    global _used
    if _used is None:
        chosen = choice()
        for name, why in chosen.passed_over.items():
            if name == "native":
                print(f"note: slower PyTorch kernels in use: {why}", file=sys.stderr)
            else:
                print(f"warning: {chosen.kernels.name} kernels in use, not {name}: {why}", file=sys.stderr)
        _used = chosen.kernels
    return _used


def use(implementation: TorchKernels | None) -> None:
    """Choose the implementation from outside (tests, benchmarks); None: choose again at the next call."""
    global _used
    _used = implementation
    choice.cache_clear()


def select_rows(matrix: Matrix, index: torch.Tensor) -> torch.Tensor:
    """The rows index (n,) int64 of matrix (out, in), (n, in) float32."""
    if isinstance(matrix, torch.Tensor):
        return matrix[index].float()
    order = index if matrix.order is None else matrix.order[index]
    return kernels().blocks_decode([replace(matrix, shape=(len(index), matrix.shape[1]), order=order)])
