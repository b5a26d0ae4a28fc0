"""The three passes of an int8 linear with its adapter, in plain PyTorch; `native` has the same fused in C (int8.c).

Weights are held once, as unsigned bytes (value + 128) in panels of 16 outputs, (out/16, in/4, 16, 4), which is what the
CPU's 8-bit dot products take; both sides are padded to multiples of 16. Rows of inputs are whole numbers up to
`levels`: 127, or more where the CPU multiplies 16 bits as fast as it can 8 (AVX2). They carry one scale for each group
of columns: a wide column spoils the resolution of its group alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rescoldo.engine.kernels.ops import Dropout, dropout

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


def int8_pack(weight: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (out, in) times columns (in,) float32, by rows → panels, scale of each row (out,) float32."""
    weight = weight.float() * columns
    largest = weight.abs().amax(-1)
    inverse = torch.where(largest > 1e-30, 127.0 / largest, 0.0)
    return pack_panels((weight * inverse[:, None]).round().to(torch.int8)), largest / 127.0


def levels_type(levels: int) -> torch.dtype:
    """What holds numbers up to `levels`."""
    return torch.int8 if levels == 127 else torch.int16


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
class Side:
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
class Apart:
    """Columns of the input kept out of the int8 product: their indices (n,) int64, and where they stand in z."""

    index: torch.Tensor
    at: int


def int8_input(
    x: torch.Tensor,
    columns: torch.Tensor | None,
    group: int | None,
    segments: Sequence[Segment],
    apart: Apart | None,
    width: int,
    mask: Dropout | None,
    levels: int,
) -> tuple[Quantized | None, torch.Tensor]:
    """x (T, K) bfloat16 → its columns, times `columns` (K,) float32, quantized (not for group None), and z (T, width).

    z gets the segments' products, whose input is x behind the dropout, and the columns kept apart as they are.
    """
    t, k = x.shape
    z = torch.zeros(t, width)
    dropped = (dropout(x, mask) if mask else x).float() if segments else x
    for s in segments:
        z[:, s.at : s.at + s.n] = dropped[:, s.start : s.end] @ s.b[:, : s.n]
    if apart is not None:
        z[:, apart.at : apart.at + len(apart.index)] = x.index_select(1, apart.index).float()
    if group is None:
        return None, z
    full = torch.zeros(t, padded(k))
    full[:, :k] = x.float() if columns is None else x.float() * columns
    q, scales, sums = torch.empty(full.shape, dtype=levels_type(levels)), [], []
    for start in range(0, full.shape[1], group):
        part = full[:, start : start + group]
        largest = part.abs().amax(-1)
        inverse = torch.where(largest > 1e-30, levels / largest, 0.0)  # no overflow
        rounded = (part * inverse[:, None]).round()
        q[:, start : start + group] = rounded.to(q.dtype)
        scales.append(largest / levels)
        sums.append(128 * rounded.sum(-1, dtype=torch.float64).to(torch.int32))
    return Quantized(q, torch.stack(scales, 1), torch.stack(sums, 1) if levels == 127 else None, group), z


def int8_residual_(x: torch.Tensor, columns: torch.Tensor | None, rows: Quantized) -> None:
    """x (T, K) bfloat16, in place: what quantizing it to `rows` has lost. Columns that are 0 become 0."""
    scale = rows.scale.repeat_interleave(rows.group, dim=1)[:, : rows.q.shape[1]]
    held = (rows.q.float() * scale)[:, : x.shape[1]]
    if columns is None:
        x.copy_(x.float() - held)
    else:
        x.copy_(torch.where(columns != 0, x.float() - held / columns, 0.0))


def int8_product(
    x: Quantized,
    panels: torch.Tensor,
    outputs: int,
    columns: torch.Tensor,
    side: Side | None,
    z: torch.Tensor,
    mask: Dropout | None,
    bias: torch.Tensor | None,
    *,
    backward: bool,
) -> torch.Tensor:
    """x · Wᵀ (or, backward, x · W) times columns (outputs,), plus mask · z · side, plus bias; (T, outputs) bfloat16."""
    weight = unpack_panels(panels)
    weight = weight if backward else weight.T
    y = torch.zeros(x.q.shape[0], weight.shape[1])
    for g, start in enumerate(range(0, x.q.shape[1], x.group)):
        rows = slice(start, start + x.group)
        y += _whole_product(x.q[:, rows].contiguous(), weight[rows]).float() * x.scale[:, g, None]
    y = y[:, :outputs] * columns
    if side is not None:
        extra = z @ side.dense(z.shape[1], outputs)
        y += extra if mask is None else extra * mask.mask(outputs) * mask.scale
    if bias is not None:
        y += bias.float()
    return y.to(torch.bfloat16)


def _whole_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a · b of whole numbers, without rounding."""
    return torch._int_mm(a, b) if a.dtype == b.dtype else a.double() @ b.double()


def outer_rows(z: torch.Tensor, x: torch.Tensor, mask: Dropout | None, factor: float) -> torch.Tensor:
    """factor · zᵀ · x, (R, C) float32, of z (T, R) float32 and x (T, C) bfloat16 behind the dropout."""
    return factor * (z.T @ (dropout(x, mask) if mask else x).float())
