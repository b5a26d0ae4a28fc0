"""Frozen linear layers in four precisions behind one small interface.

A frozen weight is needed for two products and no third: y = x·Wᵀ going forward and dx = dy·W going back. Several
linears that share an input (q, k, v; gate, up) are one weight here, their rows one behind the other.

Some columns of the input may be kept apart in bfloat16 (int8's outliers). They travel with the adapter, whose small
products are done in bfloat16 anyway: `side_weight` (out, n) multiplies `side_input(x)` (T, n), the caller adds the
product, and on the way back the caller hands `side_grad` to `input_grad`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from rescoldo.engine.dispatch import kernels

PRECISIONS = ("fp32", "bf16", "int8", "nf4")
N_OUTLIERS = (
    64  # input columns kept in bfloat16 per int8 linear: with 16 the gradient's cosine is 0.993 instead of 0.995
)
_SMOOTHING = 0.5  # SmoothQuant's alpha (arXiv 2211.10438): how much of the inputs' range moves into the weights


class FrozenLinear(ABC):
    """A frozen (out, in) weight. Inputs and outputs are in `dtype`: float32 for fp32, bfloat16 for the others."""

    out_features: int
    in_features: int
    dtype: torch.dtype = torch.bfloat16
    side_weight: torch.Tensor | None = None  # (out, n) bfloat16: the columns kept apart

    @abstractmethod
    def forward(self, x: torch.Tensor, side: torch.Tensor | None = None) -> torch.Tensor:
        """x (T, in) → x·Wᵀ [+ side (T, out)], (T, out), without the columns kept apart."""

    @abstractmethod
    def input_grad(self, dy: torch.Tensor, side_grad: torch.Tensor | None = None) -> torch.Tensor:
        """dy (T, out) → dy·W, (T, in), with side_grad (T, n) put where the columns kept apart are."""

    def side_input(self, x: torch.Tensor) -> torch.Tensor | None:
        """The columns of x (T, in) kept apart, (T, n); None where there are none."""
        del x
        return None

    def dense(self) -> torch.Tensor:
        """The weight as this precision holds it, (out, in) float32: the reference for tests and for merging."""
        eye = torch.eye(self.out_features, dtype=self.dtype)
        side = eye @ self.side_weight.to(self.dtype) if self.side_weight is not None else None
        weight: torch.Tensor = self.input_grad(eye, side).float()
        return weight

    def tensors(self) -> dict[str, torch.Tensor]:
        """What this precision made of the weight, to be cached on disk; {} where it maps the file's own."""
        return {}


class PlainLinear(FrozenLinear):
    """fp32 and bf16: the weight as it is, mapped from the file where the precision is the file's."""

    def __init__(self, weights: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.out_features = sum(w.shape[0] for w in weights)
        self.in_features = weights[0].shape[1]
        small = self.out_features * self.in_features <= 1 << 23  # a copy is cheap, and one product faster than three
        mapped = all(w.dtype == dtype for w in weights) and not small
        parts = list(weights) if mapped else [torch.cat([w.to(dtype) for w in weights])]
        self.parts = [part.contiguous() for part in parts]

    def forward(self, x: torch.Tensor, side: torch.Tensor | None = None) -> torch.Tensor:
        if len(self.parts) == 1:
            weight = self.parts[0].T
            return x @ weight if side is None else torch.addmm(side, x, weight)
        y = torch.empty(x.shape[0], self.out_features, dtype=self.dtype)
        start = 0
        for part in self.parts:
            end = start + part.shape[0]
            y[:, start:end] = x @ part.T
            start = end
        return y if side is None else y.add_(side)

    def input_grad(self, dy: torch.Tensor, side_grad: torch.Tensor | None = None) -> torch.Tensor:
        del side_grad
        pieces = dy.split([part.shape[0] for part in self.parts], dim=1)
        dx: torch.Tensor = pieces[0] @ self.parts[0]
        for piece, part in zip(pieces[1:], self.parts[1:], strict=True):
            dx.addmm_(piece, part)
        return dx


class Int8Linear(FrozenLinear):
    """int8 weights, once, for both directions; int8 inputs and output gradients by row.

    SwitchBack (arXiv 2304.13013) trains with just these two products in int8. Inputs have outlier columns: part of
    their range is moved into the weights (SmoothQuant), and the widest few are kept apart (LLM.int8(), 2208.07339).

        y = (q(x·c) · Qᵀ) · s_x · s_w + x[:, apart] · side_weightᵀ,    dx = (q(dy·s_w) · Q) · s_dy · c
    """

    def __init__(self, weights: Sequence[torch.Tensor], columns: torch.Tensor, apart: torch.Tensor) -> None:
        """columns (in,) float32: multiplies the input, 0 where a column is kept apart; apart (n,) int64, ascending."""
        weight = torch.cat([w.float() for w in weights])
        self.side_weight = weight[:, apart].to(torch.bfloat16).contiguous()
        inverse = torch.where(columns > 0, 1.0 / columns, 0.0)
        weight *= inverse
        quantized, scale = kernels().quantize_rows(weight, None)
        self._set(quantized, scale, columns, apart)

    def _set(self, q: torch.Tensor, scale: torch.Tensor, columns: torch.Tensor, apart: torch.Tensor) -> None:
        self.q, self.scale, self.columns, self.apart = q, scale, columns, apart
        self.out_features, self.in_features = q.shape

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Int8Linear:
        """Back from what `tensors()` returned."""
        self = cls.__new__(cls)
        self.side_weight = tensors["side"]
        self._set(tensors["q"], tensors["scale"], tensors["columns"], tensors["apart"])
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        assert self.side_weight is not None
        return {
            "q": self.q,
            "scale": self.scale,
            "columns": self.columns,
            "apart": self.apart,
            "side": self.side_weight,
        }

    def side_input(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(1, self.apart)

    def forward(self, x: torch.Tensor, side: torch.Tensor | None = None) -> torch.Tensor:
        q, rows = kernels().quantize_rows(x, self.columns)
        return kernels().dequantize(torch._int_mm(q, self.q.T), rows, self.scale, side, self.dtype)

    def input_grad(self, dy: torch.Tensor, side_grad: torch.Tensor | None = None) -> torch.Tensor:
        q, rows = kernels().quantize_rows(dy, self.scale)
        dx = kernels().dequantize(torch._int_mm(q, self.q), rows, self.columns, None, self.dtype)
        if side_grad is not None:
            dx.index_copy_(1, self.apart, side_grad)
        return dx


def smoothing(inputs: torch.Tensor, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """How to treat an int8 linear's input columns.

    Args:
        inputs: (in,) float32, each column's largest magnitude over the calibration tokens.
        weights: the (out_i, in) weights that share the input.

    Returns:
        `columns` (in,) float32 and `apart` (N_OUTLIERS,) int64 as Int8Linear takes them.
    """
    wide = torch.stack([w.abs().amax(0).float() for w in weights]).amax(0).clamp_min(1e-6)
    inputs = inputs.clamp_min(1e-6)
    scale = (inputs**_SMOOTHING / wide ** (1 - _SMOOTHING)).clamp(1e-5, 1e5)
    apart = (inputs / scale).topk(min(N_OUTLIERS, inputs.numel())).indices.sort().values
    columns = 1.0 / scale
    columns[apart] = 0.0
    return columns, apart


class Nf4Linear(FrozenLinear):
    """Four bits a weight (NormalFloat 4, QLoRA), in blocks of 64 along the input with a bfloat16 scale each; unpacked
    to bfloat16 for each product: with hundreds of tokens a step that costs a few per cent."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        packed, scales = zip(*(kernels().nf4_pack(w) for w in weights), strict=True)
        self._set(torch.cat(packed), torch.cat(scales))

    def _set(self, packed: torch.Tensor, scales: torch.Tensor) -> None:
        self.packed, self.scales = packed, scales
        self.out_features, self.in_features = packed.shape[0], packed.shape[1] * 2

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Nf4Linear:
        """Back from what `tensors()` returned."""
        self = cls.__new__(cls)
        self._set(tensors["packed"], tensors["scales"])
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"packed": self.packed, "scales": self.scales}

    def forward(self, x: torch.Tensor, side: torch.Tensor | None = None) -> torch.Tensor:
        weight = kernels().nf4_unpack(self.packed, self.scales).T
        return x @ weight if side is None else torch.addmm(side, x, weight)

    def input_grad(self, dy: torch.Tensor, side_grad: torch.Tensor | None = None) -> torch.Tensor:
        del side_grad
        return dy @ kernels().nf4_unpack(self.packed, self.scales)
