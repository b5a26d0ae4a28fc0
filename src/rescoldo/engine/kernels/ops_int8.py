"""Operands of an int8 linear's three passes (TorchKernels.int8_input, int8_product, outer_rows; fused in C in int8.c).

Weights are held once, as unsigned bytes (value + 128) in panels of 16 outputs, (out/16, in/4, 16, 4), which is what the
CPU's 8-bit dot products take; both sides are padded to multiples of 16. Rows of inputs are whole numbers up to
qmax: 127, or more where the CPU multiplies 16 bits as fast as it can 8 (AVX2). They carry one scale for each group
of columns: a wide column spoils the resolution of its group alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PANEL = 16


def padded(n: int) -> int:
    """n, up to the next multiple of a panel's width."""
    return (n + PANEL - 1) // PANEL * PANEL


def pack_panels(q: torch.Tensor) -> torch.Tensor:
    """q (out, in) int8 → (out/16, in/4, 16, 4) uint8."""
    out, into = q.shape
    full = torch.full((padded(out), padded(into)), 128, dtype=torch.uint8)
    full[:out, :into] = q.view(torch.uint8) ^ 128
    return full.view(-1, PANEL, full.shape[1] // 4, 4).transpose(1, 2).contiguous()


def unpack_panels(panels: torch.Tensor) -> torch.Tensor:
    """The inverse, padding included."""
    full = panels.view(torch.int32)[..., 0].transpose(1, 2).contiguous().view(torch.uint8)  # whole words are faster
    return (full.view(panels.shape[0] * PANEL, -1) ^ 128).view(torch.int8)


def level_type(qmax: int) -> torch.dtype:
    """What holds quantized inputs up to qmax."""
    return torch.int8 if qmax == 127 else torch.int16


@dataclass(frozen=True)
class Quantized:
    """Rows (T, K) as int8 or int16 q (T, K padded), each `group` columns with a scale (T, groups) float32; for int8,
    `sum` (T, groups) int32 is 128 times the groups' sums, which the unsigned weights' products have too much."""

    q: torch.Tensor
    scale: torch.Tensor
    sum: torch.Tensor | None
    group: int


@dataclass(frozen=True)
class Segment:
    """A small product: z[:, at : at + n] = x[:, start:end] · b, with b (end - start, n padded) float32."""

    start: int
    end: int
    b: torch.Tensor
    n: int
    at: int


@dataclass(frozen=True)
class LowRankTerm:
    """What a product adds to each panel p of 16 outputs: z[:, at[p] : + n] · own[p], own (panels, n, 16) float32, or
    nothing where `at` is -1; and z[:, common_at : + m] · common[p], common (panels, m, 16) float32."""

    own: torch.Tensor
    common: torch.Tensor
    common_at: int
    at: torch.Tensor

    def dense(self, width: int, outputs: int) -> torch.Tensor:
        """(width of z, outputs): the same as one matrix."""
        full = torch.zeros(width, len(self.at) * PANEL)
        for panel, at in enumerate(self.at.tolist()):
            columns = slice(panel * PANEL, (panel + 1) * PANEL)
            if at >= 0:
                full[at : at + self.own.shape[1], columns] = self.own[panel]
            full[self.common_at : self.common_at + self.common.shape[1], columns] += self.common[panel]
        return full[:, :outputs]


@dataclass(frozen=True)
class Outliers:
    """Columns of the input kept out of the int8 product (LLM.int8()): their indices (n,) int64, and their first column
    in z."""

    index: torch.Tensor
    at: int
