"""Which implementation of the small operations is in use: the native kernels, or their PyTorch twins."""

from __future__ import annotations

import os
from typing import Any

from rescoldo.engine import attention, ops, rope

_chosen: Any = None


class Twins:
    """The PyTorch implementation of everything that `native.Native` offers."""

    name = "pytorch"
    why = ""
    rms_norm = staticmethod(ops.rms_norm)
    rms_norm_backward = staticmethod(ops.rms_norm_backward)
    silu_mul = staticmethod(ops.silu_mul)
    silu_mul_backward = staticmethod(ops.silu_mul_backward)
    dropout = staticmethod(ops.dropout)
    dropout_backward = staticmethod(ops.dropout_backward)
    quantize_rows = staticmethod(ops.quantize_rows)
    dequantize = staticmethod(ops.dequantize)
    cross_entropy = staticmethod(ops.cross_entropy)
    nf4_pack = staticmethod(ops.nf4_pack)
    nf4_unpack = staticmethod(ops.nf4_unpack)
    rotate_ = staticmethod(rope.rotate_)
    attend = staticmethod(attention.attend)
    attend_backward = staticmethod(attention.attend_backward)


def kernels() -> Any:
    """The operations to use: native where they can be built here (RESCOLDO_NATIVE=0 says no), else the twins."""
    global _chosen
    if _chosen is None:
        _chosen = Twins()
    return _chosen


def use(implementation: Any) -> None:
    """Choose the implementation from outside (tests, benchmarks); None: choose anew at the next call."""
    global _chosen
    _chosen = implementation
