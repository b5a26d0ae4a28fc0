"""Which implementation of the operations is in use: the native kernels, or PyTorch's."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch

from rescoldo.engine.kernels.blocks import Matrix
from rescoldo.engine.kernels.build import BuildError
from rescoldo.engine.kernels.torch_kernels import TorchKernels

_chosen: TorchKernels | None = None


def kernels() -> TorchKernels:
    """The operations to use: native where they can be built here (RESCOLDO_KERNELS=torch says no), else PyTorch's."""
    global _chosen
    if _chosen is None:
        from rescoldo.engine.kernels.native import NativeKernels

        _chosen = TorchKernels()
        wanted = os.environ.get("RESCOLDO_KERNELS") or None
        if wanted != "torch":
            try:
                _chosen = NativeKernels(wanted)
            except BuildError as error:
                print(f"note: slower PyTorch kernels in use: {error}", file=sys.stderr)
    return _chosen


def use(implementation: TorchKernels | None) -> None:
    """Choose the implementation from outside (tests, benchmarks); None: choose anew at the next call."""
    global _chosen
    _chosen = implementation


def select_rows(matrix: Matrix, index: torch.Tensor) -> torch.Tensor:
    """The rows index (n,) int64 of matrix (out, in), (n, in) float32."""
    if isinstance(matrix, torch.Tensor):
        return matrix[index].float()
    order = index if matrix.order is None else matrix.order[index]
    return kernels().blocks_decode([replace(matrix, shape=(len(index), matrix.shape[1]), order=order)])
