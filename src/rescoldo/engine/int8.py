"""Frozen linears with a single int8 copy of the weights for both directions, and int8 inputs and output gradients.
Weights in blocks (nf4, GGUF) can stay so: the same int8 numbers are then unpacked piece by piece during a product.

SwitchBack (arXiv 2304.13013) trains with the same two products in int8. The main source of error is outliers in the
inputs: a part of their range is moved into the weights (SmoothQuant, arXiv 2211.10438), the few widest columns, the
outliers, are multiplied in float32 (LLM.int8(), arXiv 2208.07339), and a row has a scale for each group of columns.

    y = Σ_g (q(x_g·c_g) · Q_gᵀ)·s_g · s_w  +  x[:, outliers] · W[:, outliers]ᵀ  +  adapter    (x without its outliers)
    dx = Σ_g (q((dy·s_w)_g) · Q_g)·s_g · c  +  adapter
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from rescoldo.engine.kernels.blocks import NF4, LazyInt8, Matrix, QuantizedMatrix
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.kernels.ops import Dropout
from rescoldo.engine.kernels.ops_int8 import PANEL, LowRankTerm, Outliers, Segment, padded, unpack_panels
from rescoldo.engine.linear import Adapter, FrozenLinear, Gradients, Products

N_OUTLIERS = 32  # input columns multiplied in float32
_PANELS = 64  # panels of a weight converted to float32 at a time
_SMOOTHING = 0.4  # SmoothQuant's alpha: the fraction of the inputs' range that is moved into the weights


def group_size(columns: int) -> int:
    """The number of columns under one scale of a row: smaller groups are more precise, and cost more conversions."""
    if kernels().qmax > 127:
        return 512
    return 96 if columns <= 1024 else 192 if columns < 4096 else 512


def smoothing(inputs: torch.Tensor, weights: Sequence[Matrix]) -> tuple[torch.Tensor, torch.Tensor]:
    """How to quantize an int8 linear's input columns.

    Args:
        inputs: (in,) float32, each column's largest magnitude over the calibration tokens.
        weights: the (out_i, in) weights that share the input.

    Returns:
        `channel_scale` (in,) float32 and `outliers` (at most N_OUTLIERS,) int64 for Int8Linear.
    """
    parts = [w for w in weights if isinstance(w, QuantizedMatrix)]
    ranges = [w.abs().amax(0).float() for w in weights if isinstance(w, torch.Tensor)]
    wide = (kernels().blocks_widest(parts) if parts else torch.stack(ranges).amax(0)).clamp_min(1e-6)
    inputs = inputs.clamp_min(1e-6)
    scale = (inputs**_SMOOTHING / wide ** (1 - _SMOOTHING)).clamp(1e-5, 1e5)
    outliers = (inputs / scale).topk(min(N_OUTLIERS, inputs.numel())).indices.sort().values
    # the int8 copies of the outliers are used only in the backward pass, and widen no row's range
    others = (wide * scale).index_fill(0, outliers, 0.0).amax()
    scale[outliers] = (others if others > 0 else 1.0) / wide[outliers]
    return 1.0 / scale, outliers


class Int8Linear(FrozenLinear):
    """See the module's docstring."""

    def __init__(
        self,
        weights: Sequence[Matrix],
        channel_scale: torch.Tensor,
        outliers: torch.Tensor,
        *,
        two_pass: bool = False,
        unpacked: bool = True,
    ) -> None:
        """channel_scale (in,) float32: multiplies the input and divides the weight; outliers (n,) int64, ascending.

        The weights are either all dense or all in blocks. Blocks are unpacked to int8 once, or with `unpacked` False
        for each product, with the same bits. With `two_pass`, output gradients are quantized twice, the second time the
        error of the
        first: the gradient of a softmax over a vocabulary has a few large and thousands of tiny numbers. The gradients
            are
        overwritten.
        """
        self.two_pass, self.channel_scale, self.outliers = two_pass, channel_scale, outliers
        self.out_features, self.in_features = sum(w.shape[0] for w in weights), weights[0].shape[1]
        self.inputs = channel_scale.index_fill(0, outliers, 0.0)
        inverse = 1.0 / channel_scale
        self.weight: torch.Tensor | LazyInt8
        parts = [w for w in weights if isinstance(w, QuantizedMatrix)]
        dense = [w for w in weights if isinstance(w, torch.Tensor)]
        if parts:
            largest, kept = kernels().blocks_scale(parts, inverse, outliers)
            self.scale = largest / 127.0
            lazy = LazyInt8(parts, inverse, torch.where(largest > 1e-30, 127.0 / largest, 0.0))
            self.weight = kernels().int8_unpack(lazy) if unpacked else lazy
        else:
            whole = all(w.shape[0] % PANEL == 0 for w in dense)
            made = [kernels().int8_pack(w, inverse) for w in (dense if whole else [torch.cat(dense)])]
            self.weight = made[0][0] if len(made) == 1 else torch.cat([panels for panels, _ in made])
            self.scale = torch.cat([scale for _, scale in made])
            kept = torch.cat([w[:, outliers].float() for w in dense])
        self.outlier_panels = _by_panels(kept.T).contiguous()  # the outliers' columns in float32

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that `restored` needs; nf4 and int8 only."""
        found = {
            "columns": self.channel_scale,
            "apart": self.outliers,
            "scale": self.scale,
            "kept": self.outlier_panels,
        }
        if isinstance(self.weight, torch.Tensor):
            return {**found, "panels": self.weight}
        for i, part in enumerate(self.weight.parts):
            assert part.scales is not None
            found |= {f"data.{i}": part.data, f"scales.{i}": part.scales}
        return {**found, "inverse": self.weight.inverse}

    @classmethod
    def restored(cls, tensors: dict[str, torch.Tensor], *, two_pass: bool = False) -> Int8Linear:
        """The linear with these `tensors`, sharing their memory."""
        self = cls.__new__(cls)
        self.two_pass, self.channel_scale, self.outliers = two_pass, tensors["columns"], tensors["apart"]
        self.scale, self.outlier_panels = tensors["scale"], tensors["kept"]
        self.out_features, self.in_features = len(self.scale), len(self.channel_scale)
        self.inputs = self.channel_scale.index_fill(0, self.outliers, 0.0)
        if "panels" in tensors:
            self.weight = tensors["panels"]
            return self
        parts: list[QuantizedMatrix] = []
        while f"data.{len(parts)}" in tensors:
            data, scales = tensors[f"data.{len(parts)}"], tensors[f"scales.{len(parts)}"]
            parts.append(QuantizedMatrix(NF4, data, (len(data), self.in_features), scales))
        self.weight = LazyInt8(parts, 1.0 / self.channel_scale, tensors["inverse"])
        return self

    def adapted(self, adapter: Adapter | None, bias: torch.Tensor | None) -> Int8Products:
        return Int8Products(self, adapter, bias)

    def dense(self) -> torch.Tensor:
        return torch.cat(list(self._rows()))

    def squared_norms(self) -> torch.Tensor:
        return torch.cat([rows.square().sum(1) for rows in self._rows()])

    def _rows(self) -> Iterator[torch.Tensor]:
        """The weight in float32, a few rows at a time."""
        panels = self.weight if isinstance(self.weight, torch.Tensor) else kernels().int8_unpack(self.weight)
        for first in range(0, len(panels), _PANELS):
            start, end = first * PANEL, min((first + _PANELS) * PANEL, self.out_features)
            some = unpack_panels(panels[first : first + _PANELS])[: end - start, : self.in_features]
            weight = some.float() * self.scale[start:end, None]
            weight *= self.channel_scale
            outliers = self.outlier_panels[first : first + _PANELS].transpose(1, 2).flatten(0, 1)
            weight[:, self.outliers] = outliers[: end - start]
            yield weight


class Int8Products(Products):
    """The adapter's matrices laid out for the kernels: z has drop(x)·Aᵀ, R columns, followed by the outliers."""

    def __init__(self, frozen: Int8Linear, adapter: Adapter | None, bias: torch.Tensor | None) -> None:
        self.frozen, self.adapter, self.bias = frozen, adapter, bias
        self._logits: torch.Tensor | None = None  # a buffer reused between losses: allocating it is slow
        n, self.rank = len(frozen.outliers), adapter.rank if adapter else 0
        members = adapter.members if adapter else []
        self.total = total = self.rank * len(members)
        self.width = total + n
        self.outliers = Outliers(frozen.outliers, total) if n else None
        self.down: list[Segment] = []  # forward: x → z
        self.up: list[Segment] = []  # backward: dy → dz
        split = all(m.start % PANEL == 0 and (m.end % PANEL == 0 or m.end == frozen.out_features) for m in members)
        at = torch.full((len(frozen.outlier_panels),), 0 if total and not split else -1, dtype=torch.int32)
        own = self.rank if split else total
        term = torch.zeros(len(at), own, PANEL)  # the rows of B for each panel of outputs
        self.backward_term: LowRankTerm | None = None
        if adapter is not None and members:
            for first, m in zip(range(0, total, self.rank), members, strict=True):
                b = m.scale * m.b
                self.up.append(Segment(m.start, m.end, _wide(b), self.rank, first))
                if split:
                    panels = slice(m.start // PANEL, padded(m.end) // PANEL)
                    at[panels] = first
                    term[panels] = _by_panels(b.T)
                else:
                    outputs = term.transpose(0, 1).reshape(total, -1)
                    outputs[first : first + self.rank, m.start : m.end] = b.T
                    term = _by_panels(outputs).contiguous()
            a = torch.cat([m.a for m in members])
            self.down = [Segment(0, frozen.in_features, _wide(a.T), total, 0)]
            panels_of_a = _by_panels(a).contiguous()
            everywhere = torch.zeros(len(panels_of_a), dtype=torch.int32)
            self.backward_term = LowRankTerm(panels_of_a, torch.empty(len(everywhere), 0, PANEL), total, everywhere)
        self.forward_term = LowRankTerm(term, frozen.outlier_panels, total, at) if self.width else None

    def forward(self, x: torch.Tensor, mask: Dropout | None, bare: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        f, op = self.frozen, kernels()
        rows, z = op.int8_input(x, f.inputs, group_size(f.in_features), self.down, self.outliers, self.width, mask)
        assert rows is not None
        if bare:
            z[:bare, : self.total] = 0
        y = op.int8_product(
            rows, f.weight, f.out_features, f.scale, self.forward_term, z, None, self.bias, backward=False
        )
        return y, z

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, z: torch.Tensor | None, mask: Dropout | None, want_input: bool
    ) -> tuple[torch.Tensor | None, Gradients]:
        f, op, r = self.frozen, kernels(), self.rank
        group = group_size(f.out_features) if want_input else None
        rows, dz = op.int8_input(dy, f.scale, group, self.up, None, self.total, None)
        gradients: Gradients = []
        if self.adapter is not None and self.total and z is not None:
            da = op.outer_rows(dz, x, mask, 1.0) if self.adapter.trains_a else None
            for i, m in enumerate(self.adapter.members):
                part = slice(i * r, (i + 1) * r)
                db = op.outer_rows(z[:, part], dy[:, m.start : m.end], None, m.scale, transposed=True)
                gradients.append((None if da is None else da[part], db))
        if rows is None:
            return None, gradients
        dx = op.int8_product(
            rows, f.weight, f.in_features, f.channel_scale, self.backward_term, dz, mask, None, backward=True
        )
        if f.two_pass and op.qmax == 127:
            op.int8_residual_(dy, f.scale, rows)
            rows, _ = op.int8_input(dy, f.scale, group, [], None, 0, None)
            assert rows is not None
            dx += op.int8_product(rows, f.weight, f.in_features, f.channel_scale, None, dz, None, None, backward=True)
        return dx, gradients

    def cross_entropy(self, x: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[float, torch.Tensor]:
        f, op = self.frozen, kernels()
        if self.adapter is not None or self.bias is not None or not f.two_pass:
            return super().cross_entropy(x, targets, weight)
        room, self._logits = self._logits, None  # a second thread allocates its own
        if room is None or len(room) < len(x):
            room = torch.empty(len(x), f.out_features, dtype=x.dtype)
        rows, z = op.int8_input(x, f.inputs, group_size(f.in_features), [], self.outliers, self.width, None)
        assert rows is not None
        logits = op.int8_product(
            rows,
            f.weight,
            f.out_features,
            f.scale,
            self.forward_term,
            z,
            None,
            None,
            backward=False,
            out=room[: len(x)],
        )
        loss, rows = op.int8_cross_entropy_(logits, targets, weight, f.scale, group_size(f.out_features))
        dx = op.int8_product(rows, f.weight, f.in_features, f.channel_scale, None, z, None, None, backward=True)
        self._logits = room
        return loss, dx if len(dx) == len(x) else dx[0::2] + dx[1::2]


def _wide(b: torch.Tensor) -> torch.Tensor:
    """b (K, n), contiguous, padded with zero columns to a multiple of 16."""
    if b.shape[1] % PANEL == 0:
        return b.contiguous()
    full = torch.zeros(b.shape[0], padded(b.shape[1]))
    full[:, : b.shape[1]] = b
    return full


def _by_panels(rows: torch.Tensor) -> torch.Tensor:
    """rows (R, outputs) → (panels, R, 16), padded with zeros; a view where they need no padding."""
    n = rows.shape[1]
    if n % PANEL:
        rows, n = _wide(rows), padded(n)
    return rows.reshape(len(rows), n // PANEL, PANEL).transpose(0, 1)
