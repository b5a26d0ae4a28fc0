"""The interface of frozen linear layers, alone and with an adapter; fp32 and bf16. int8.py has int8 and nf4.

A frozen weight is used in two products only: y = x·Wᵀ in the forward pass and dx = dy·W in the backward pass. Several
linears that share an input (q, k, v; gate, up) are one weight here, with their rows concatenated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.kernels.ops import Dropout
from rescoldo.system.cpu import fast_bf16

_ROWS = 1024  # of a weight that are in float32 at a time
_FEW_ROWS = 16  # below, reading the weight costs more than multiplying, and float32 would double it
# of each member's A (r, in), None where A is not trained, and B (its outputs, r), float32
Gradients = list[tuple[torch.Tensor | None, torch.Tensor]]


@dataclass(frozen=True)
class Member:
    """An adapted linear: its rows in the group's output, its adapter A (r, in), B (end - start, r) float32, and the
    factor on their product."""

    start: int
    end: int
    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """The adapters of linears that share an input: y += scale·(drop(x)·Aᵀ)·Bᵀ for each member, all of one rank.
    `trains_a`: whether the backward pass makes A's gradients."""

    members: Sequence[Member]
    rank: int
    trains_a: bool = True


class Products(ABC):
    """A frozen linear's products with its current adapter."""

    @abstractmethod
    def forward(self, x: torch.Tensor, mask: Dropout | None, bare: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x (T, in) → y (T, out), and what `backward` needs in addition to x; the first `bare` rows without the
        adapter."""

    @abstractmethod
    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, z: torch.Tensor | None, mask: Dropout | None, want_input: bool
    ) -> tuple[torch.Tensor | None, Gradients]:
        """dy (T, out), the input and the result of `forward` → dx (T, in), None if not wanted; the adapter's
        gradients."""

    def cross_entropy(self, x: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[float, torch.Tensor]:
        """The loss on y as logits: x (T, in), targets (T,) int64 → the losses' sum in nats, and `weight` times its
        gradient w.r.t. x (T, in)."""
        logits, z = self.forward(x, None)
        loss, dlogits = kernels().cross_entropy(logits, targets, weight)
        del logits
        dx, _ = self.backward(dlogits, x, z, None, True)
        assert dx is not None
        return loss, dx


class FrozenLinear(ABC):
    """A frozen (out, in) weight. Inputs and outputs are in `dtype`: float32 for fp32, bfloat16 for the others."""

    out_features: int
    in_features: int
    dtype: torch.dtype = torch.bfloat16

    @abstractmethod
    def adapted(self, adapter: Adapter | None, bias: torch.Tensor | None) -> Products:
        """The weight's products together with an adapter and a bias (out,); the adapter is copied."""

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """The weight in this precision, (out, in) float32: the reference for tests and for merging."""

    @abstractmethod
    def squared_norms(self) -> torch.Tensor:
        """‖w‖² of each row of the weight in this precision, (out,) float32, without a copy of the weight."""


def _product(x: torch.Tensor, w: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
    """x (T, K) · w (K, N) [+ addend (T, N)], in x's dtype; through float32 if this CPU would emulate bfloat16."""
    if x.dtype == torch.bfloat16 and not fast_bf16() and x.shape[0] > _FEW_ROWS:
        y = x.float() @ w.float()
        return (y if addend is None else y.add_(addend)).to(x.dtype)
    return x @ w if addend is None else torch.addmm(addend, x, w)


class _PlainProducts(Products):
    """The adapters' matrices stacked: A of all members (R, in), B block-diagonal (out, R) including the scale."""

    def __init__(self, frozen: PlainLinear, adapter: Adapter | None, bias: torch.Tensor | None) -> None:
        self.frozen, self.adapter, self.bias = frozen, adapter, bias
        self.a = self.b = None
        if adapter is not None and adapter.members:
            r = adapter.rank
            self.a = torch.cat([m.a for m in adapter.members]).to(frozen.dtype)
            self.b = torch.zeros(frozen.out_features, r * len(adapter.members), dtype=frozen.dtype)
            for i, m in enumerate(adapter.members):
                self.b[m.start : m.end, i * r : (i + 1) * r] = m.scale * m.b

    def forward(self, x: torch.Tensor, mask: Dropout | None, bare: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        z = addend = None
        if self.a is not None and self.b is not None:
            z = _product(kernels().dropout(x, mask) if mask else x, self.a.T)
            z[:bare] = 0
            addend = _product(z, self.b.T)
        y = self.frozen.forward(x, addend)
        if self.bias is not None:
            y += self.bias
        return y, z

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, z: torch.Tensor | None, mask: Dropout | None, want_input: bool
    ) -> tuple[torch.Tensor | None, Gradients]:
        gradients: Gradients = []
        dz = None
        if self.adapter is not None and self.b is not None and z is not None:
            r, dz = self.adapter.rank, _product(dy, self.b)
            da: torch.Tensor | None = None
            if self.adapter.trains_a:
                da = _product(dz.T, kernels().dropout(x, mask) if mask else x)  # (R, in)
            for i, m in enumerate(self.adapter.members):
                part = slice(i * r, (i + 1) * r)
                db = m.scale * _product(dy[:, m.start : m.end].T, z[:, part]).float()
                gradients.append((None if da is None else da[part], db))
        if not want_input:
            return None, gradients
        dx = self.frozen.input_grad(dy)
        if dz is not None and self.a is not None:
            kernels().dropout_backward(dx, _product(dz, self.a), mask)
        return dx, gradients


class PlainLinear(FrozenLinear):
    """fp32 and bf16: the weight itself, mapped from the file if the file has the same dtype."""

    def __init__(self, weights: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.out_features = sum(w.shape[0] for w in weights)
        self.in_features = weights[0].shape[1]
        # a copy of small ones is cheap, and one product is faster than three
        small = self.out_features * self.in_features <= 1 << 23
        mapped = all(w.dtype == dtype for w in weights) and not small
        parts = list(weights) if mapped else [torch.cat([w.to(dtype) for w in weights])]
        self.parts = [part.contiguous() for part in parts]

    def adapted(self, adapter: Adapter | None, bias: torch.Tensor | None) -> Products:
        return _PlainProducts(self, adapter, bias)

    def dense(self) -> torch.Tensor:
        return torch.cat(self.parts).float()

    def squared_norms(self) -> torch.Tensor:
        return torch.cat([rows.float().square().sum(1) for part in self.parts for rows in part.split(_ROWS)])

    def forward(self, x: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        """x (T, in) → x·Wᵀ [+ addend (T, out)], (T, out)."""
        if len(self.parts) == 1:
            return _product(x, self.parts[0].T, addend)
        y = torch.empty(x.shape[0], self.out_features, dtype=self.dtype)
        start = 0
        for part in self.parts:
            end = start + part.shape[0]
            y[:, start:end] = _product(x, part.T)
            start = end
        return y if addend is None else y.add_(addend)

    def input_grad(self, dy: torch.Tensor) -> torch.Tensor:
        """dy (T, out) → dy·W, (T, in)."""
        pieces = dy.split([part.shape[0] for part in self.parts], dim=1)
        dx = _product(pieces[0], self.parts[0])
        for piece, part in zip(pieces[1:], self.parts[1:], strict=True):
            dx = _product(piece, part, dx)
        return dx
