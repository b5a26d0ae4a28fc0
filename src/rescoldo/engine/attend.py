"""How a pass attends: over the packed rows of a micro-batch (training, prefill), or over a cache (decoding).

A layer is the same in all passes; what differs is the object that it asks for attention. T rows, H heads, K key/value
heads, d head size, P tokens of a shared prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.choose import kernels

KeysValues = tuple[torch.Tensor, torch.Tensor]  # k and v of one layer, (P, K, d) each
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class PrefixGrad:
    """Gradients that examples send to the shared prefix's keys and values, (layers, P, K, d) float32 each."""

    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class Span:
    """Which keys a layer's queries see, and how the scores are computed.

    Attributes:
        window: the sliding window in tokens, None: all keys before.
        scale: factor on the scores, None: 1 / √head_dim.
        soft_cap: cap · tanh(score / cap), None: scores as they are.
    """

    window: int | None = None
    scale: float | None = None
    soft_cap: float | None = None


class Attend(Protocol):
    """What a layer's attention asks of the pass that it is part of."""

    def stops_at_keys(self, layer: int) -> bool:
        """Whether nothing of this layer is needed but its keys and values."""

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Take note of a layer's keys and values (T, K, d), rotated."""

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q (T, H, d), k and v (T, K, d) → (T, H, d), and what the backward pass needs besides."""

    def backward(
        self,
        layer: int,
        dmixed: torch.Tensor | None,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mixed: torch.Tensor,
        state: torch.Tensor,
        span: Span,
    ) -> Gradients:
        """(dq, dk, dv) like (q, k, v) for dmixed (T, H, d); None: nothing comes from attention's output."""


class PackedAttention:
    """Causal attention within each example of a packed micro-batch, and to the prefix that all of them share.

    Args:
        layout: where the examples are.
        prefix: keys and values of the shared prefix by layer.
        prefix_grad: where the gradients of the prefix's keys and values are collected.
    """

    def __init__(
        self, layout: Layout, prefix: list[KeysValues] | None = None, prefix_grad: PrefixGrad | None = None
    ) -> None:
        self.layout, self.prefix, self.prefix_grad = layout, prefix, prefix_grad

    def stops_at_keys(self, layer: int) -> bool:
        return False

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        pass

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pk, pv = self.prefix[layer] if self.prefix else (None, None)
        return kernels().attend(q, k, v, pk, pv, self.layout, span.window, span.scale, span.soft_cap)

    def backward(
        self,
        layer: int,
        dmixed: torch.Tensor | None,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mixed: torch.Tensor,
        state: torch.Tensor,
        span: Span,
    ) -> Gradients:
        assert dmixed is not None
        pk, pv = self.prefix[layer] if self.prefix else (None, None)
        grad = self.prefix_grad
        dk, dv = (grad.k[layer], grad.v[layer]) if grad else (None, None)
        return kernels().attend_backward(
            dmixed, q, k, v, pk, pv, mixed, state, self.layout, span.window, dk, dv, span.scale, span.soft_cap
        )


class PrefixAttention(PackedAttention):
    """Attention within a shared prefix, up to the last layer's keys and values, which is all that examples need of it.

    Attributes:
        found: its keys and values by layer, once the forward pass has gone through.
        received: what its examples have sent to them, added in the backward pass.
    """

    def __init__(self, length: int, n_layers: int) -> None:
        super().__init__(Layout((0, length), 0))
        self.last = n_layers - 1
        self.found: list[KeysValues] = []
        self.received: PrefixGrad | None = None

    def stops_at_keys(self, layer: int) -> bool:
        return layer == self.last

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        if layer == len(self.found):  # else recomputed
            self.found.append((k, v))

    def backward(
        self,
        layer: int,
        dmixed: torch.Tensor | None,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mixed: torch.Tensor,
        state: torch.Tensor,
        span: Span,
    ) -> Gradients:
        if dmixed is None:
            dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        else:
            dq, dk, dv = super().backward(layer, dmixed, q, k, v, mixed, state, span)
        if self.received is not None:
            dk = (dk.float() + self.received.k[layer]).to(q.dtype)
            dv = (dv.float() + self.received.v[layer]).to(q.dtype)
        return dq, dk, dv
