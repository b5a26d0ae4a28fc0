"""Which implementation of the small operations is in use: the native kernels, or their PyTorch twins."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from rescoldo.engine import rope
from rescoldo.engine.kernels import attention, blocks, ops, ops_int8
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import Blocks, Stored
from rescoldo.engine.kernels.ops import Dropout
from rescoldo.engine.kernels.ops_int8 import Apart, Quantized, Segment, Side

_chosen: Twins | None = None


class Twins:
    """The small operations in PyTorch; `native.Native` overrides those it has in C. See ops.py and attention.py."""

    name = "pytorch"
    levels = 127  # of an int8 product's quantized rows

    def rms_norm(
        self, h: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ops.rms_norm."""
        return ops.rms_norm(h, weight, eps)

    def rms_norm_backward(
        self, dy: torch.Tensor, normed: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, dh: torch.Tensor
    ) -> None:
        """See ops.rms_norm_backward."""
        ops.rms_norm_backward(dy, normed, rstd, weight, dh)

    def add_(self, h: torch.Tensor, y: torch.Tensor) -> None:
        """h (T, D) float32 += y (T, D)."""
        h += y

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See ops.silu_mul."""
        return ops.silu_mul(gate_up)

    def silu_mul_backward_(self, gate_up: torch.Tensor, da: torch.Tensor) -> None:
        """See ops.silu_mul_backward_."""
        ops.silu_mul_backward_(gate_up, da)

    def rotate_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float = 1.0) -> None:
        """rope.rotate in place; sign -1 turns back."""
        x.copy_(rope.rotate(x, cos, sign * sin))

    def dropout(self, x: torch.Tensor, how: Dropout) -> torch.Tensor:
        """See ops.dropout."""
        return ops.dropout(x, how)

    def dropout_backward(self, dx: torch.Tensor, dropped: torch.Tensor, how: Dropout | None) -> None:
        """See ops.dropout_backward."""
        ops.dropout_backward(dx, dropped, how)

    def int8_pack(self, weight: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ops_int8.int8_pack."""
        return ops_int8.int8_pack(weight, columns)

    def int8_input(
        self,
        x: torch.Tensor,
        columns: torch.Tensor | None,
        group: int | None,
        segments: Sequence[Segment],
        apart: Apart | None,
        width: int,
        mask: Dropout | None,
    ) -> tuple[Quantized | None, torch.Tensor]:
        """See ops_int8.int8_input."""
        return ops_int8.int8_input(x, columns, group, segments, apart, width, mask, self.levels)

    def int8_residual_(self, x: torch.Tensor, columns: torch.Tensor | None, rows: Quantized) -> None:
        """See ops_int8.int8_residual_."""
        ops_int8.int8_residual_(x, columns, rows)

    def int8_product(
        self,
        x: Quantized,
        weight: torch.Tensor | Stored,
        outputs: int,
        columns: torch.Tensor,
        side: Side | None,
        z: torch.Tensor,
        mask: Dropout | None,
        bias: torch.Tensor | None,
        *,
        backward: bool,
    ) -> torch.Tensor:
        """See ops_int8.int8_product; blocks are unpacked before."""
        panels = blocks.int8_unpack(weight) if isinstance(weight, Stored) else weight
        return ops_int8.int8_product(x, panels, outputs, columns, side, z, mask, bias, backward=backward)

    def outer_rows(self, z: torch.Tensor, x: torch.Tensor, mask: Dropout | None, factor: float) -> torch.Tensor:
        """See ops_int8.outer_rows."""
        return ops_int8.outer_rows(z, x, mask, factor)

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[float, torch.Tensor]:
        """See ops.cross_entropy."""
        return ops.cross_entropy(logits, targets, weight)

    def nf4_pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ops.nf4_pack."""
        return ops.nf4_pack(weight)

    def blocks_widest(self, parts: Sequence[Blocks]) -> torch.Tensor:
        """See blocks.blocks_widest."""
        return blocks.blocks_widest(parts)

    def blocks_scale(
        self, parts: Sequence[Blocks], columns: torch.Tensor, apart: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See blocks.blocks_scale."""
        return blocks.blocks_scale(parts, columns, apart)

    def blocks_decode(self, parts: Sequence[Blocks]) -> torch.Tensor:
        """See blocks.blocks_decode."""
        return blocks.blocks_decode(parts)

    def int8_unpack(self, stored: Stored) -> torch.Tensor:
        """See blocks.int8_unpack."""
        return blocks.int8_unpack(stored)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        layout: Layout,
        window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See attention.attend."""
        return attention.attend(q, k, v, prefix_k, prefix_v, layout, window)

    def attend_backward(
        self,
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        out: torch.Tensor,
        saved: torch.Tensor,
        layout: Layout,
        window: int | None,
        dprefix_k: torch.Tensor | None,
        dprefix_v: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See attention.attend_backward."""
        return attention.attend_backward(
            dout, q, k, v, prefix_k, prefix_v, out, saved, layout, window, dprefix_k, dprefix_v
        )

    def attend_cached(
        self,
        q: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: torch.Tensor,
        window: int | None,
    ) -> torch.Tensor:
        """See attention.attend_cached."""
        return attention.attend_cached(q, prefix_k, prefix_v, k, v, lengths, window)


def kernels() -> Twins:
    """The operations to use: native where they can be built here (RESCOLDO_NATIVE=0 says no), else the twins."""
    global _chosen
    if _chosen is None:
        from rescoldo.engine.kernels.native import BuildError, Native

        _chosen = Twins()
        if os.environ.get("RESCOLDO_NATIVE") != "0":
            try:
                _chosen = Native()
            except BuildError as error:
                print(f"note: slower PyTorch kernels in use: {error}", file=sys.stderr)
    return _chosen


def use(implementation: Twins | None) -> None:
    """Choose the implementation from outside (tests, benchmarks); None: choose anew at the next call."""
    global _chosen
    _chosen = implementation
