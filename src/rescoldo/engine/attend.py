"""What a pass has for its layers' mixers: the packed rows of a micro-batch (training, prefill), or a cache (decoding).

A layer is the same in all passes; what differs is the object that it asks for attention, and for the state of a mixer
that has a recurrent state instead of keys and values. T rows in n segments (examples, or rows of a batch), H heads, K
key/value heads, d head size, P tokens of a shared prefix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.choose import kernels

KeysValues = tuple[torch.Tensor, torch.Tensor]  # k and v of one layer, (P, K, d) each
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class SharedPrefix:
    """What later rows need of a prefix that they share, by layer.

    Attributes:
        keys_values: of layers with attention.
        states: of layers with a recurrent state: the state behind the prefix's last token, in the mixer's own shape.
    """

    keys_values: dict[int, KeysValues] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PrefixGrad:
    """Gradients that examples send to the shared prefix.

    Attributes:
        k, v: to the keys and values of all layers behind each other, float32.
        layers: the same by layer, (P, K, d) each: views.
        states: by layer to its states.
    """

    k: torch.Tensor
    v: torch.Tensor
    layers: Mapping[int, KeysValues]
    states: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def zeros(cls, config: DecoderConfig, length: int) -> PrefixGrad:
        """For a prefix of `length` tokens."""
        k, v = torch.zeros(2, length * config.kv_width).unbind()
        shapes = [(length, config.n_kv_heads, config.head_size(i)) for i in config.kv_layers]
        sizes = [math.prod(shape) for shape in shapes]
        parts = zip(config.kv_layers, shapes, k.split(sizes), v.split(sizes), strict=True)
        return cls(k, v, {i: (part_k.view(shape), part_v.view(shape)) for i, shape, part_k, part_v in parts})


class Attended(NamedTuple):
    """What attention's backward pass needs: q (T, H, d), k and v (T, K, d), the output (T, H, d), and what the kernel
    keeps."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mixed: torch.Tensor
    state: torch.Tensor


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
    """What a layer's mixer asks of the pass that it is part of."""

    @property
    def bounds(self) -> Sequence[int]:
        """Segment i has rows bounds[i]..bounds[i+1]-1, in the order of time."""

    def stops_at_keys(self, layer: int) -> bool:
        """Whether nothing of this layer is needed but its keys and values, or its state."""

    def start_state(self, layer: int) -> torch.Tensor | None:
        """The recurrent states (n, …) that the segments start from; None: zero."""

    def end_state(self, layer: int, states: torch.Tensor) -> None:
        """Take note of the states (n, …) behind each segment's last row."""

    def end_state_gradient(self, layer: int) -> torch.Tensor | None:
        """The gradient (n, …) float32 w.r.t. the end states, from the rows that started from them; None: zero."""

    def start_state_gradient(self, layer: int, gradient: torch.Tensor) -> None:
        """Add the gradient (n, …) w.r.t. the start states to that of whatever they come from."""

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Take note of a layer's keys and values (T, K, d), rotated."""

    def lend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keep a layer's keys and values (T, K, d) for the later layers that attend to them."""

    def lent(self, layer: int) -> KeysValues:
        """What `layer` has lent."""

    def give_back(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> None:
        """Collect the gradient (T, K, d) w.r.t. keys and values that `layer` has lent."""

    def keys_values_gradient(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> KeysValues:
        """The layer's own gradient (T, K, d) w.r.t. its keys and values, and what others have sent to them."""

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q (T, H, d), k and v (T, K, d) → (T, H, d), and what the backward pass needs besides; `layer` is the one that
        k and v belong to."""

    def backward(
        self,
        layer: int,
        dmixed: torch.Tensor | None,
        attended: Attended,
        span: Span,
    ) -> Gradients:
        """(dq, dk, dv) like (q, k, v) for dmixed (T, H, d); None: nothing comes from attention's output."""


class PackedAttention:
    """Causal attention within each example of a packed micro-batch, and to the prefix that all of them share.

    Args:
        layout: where the examples are.
        prefix: the shared prefix, None where there is none.
        prefix_grad: where the gradients w.r.t. the prefix are collected.
    """

    def __init__(
        self, layout: Layout, prefix: SharedPrefix | None = None, prefix_grad: PrefixGrad | None = None
    ) -> None:
        self.layout, self.prefix, self.prefix_grad = layout, prefix, prefix_grad
        self._lent: dict[int, KeysValues] = {}
        self._given_back: dict[int, KeysValues] = {}  # float32

    @property
    def bounds(self) -> Sequence[int]:
        return self.layout.bounds

    def stops_at_keys(self, layer: int) -> bool:
        return False

    def start_state(self, layer: int) -> torch.Tensor | None:
        state = self.prefix.states[layer] if self.prefix else None
        return None if state is None else state.expand(len(self.bounds) - 1, *state.shape)

    def end_state(self, layer: int, states: torch.Tensor) -> None:
        pass

    def end_state_gradient(self, layer: int) -> torch.Tensor | None:
        return None

    def start_state_gradient(self, layer: int, gradient: torch.Tensor) -> None:
        if self.prefix_grad is not None:
            states = self.prefix_grad.states
            states[layer] = states[layer] + gradient.sum(0) if layer in states else gradient.sum(0)

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        pass

    def lend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        if layer not in self._lent:  # a layer that is recomputed has lent them already
            self._lent[layer] = k.contiguous(), v.contiguous()

    def lent(self, layer: int) -> KeysValues:
        return self._lent[layer]

    def give_back(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> None:
        if layer in self._given_back:
            all_dk, all_dv = self._given_back[layer]
            all_dk += dk
            all_dv += dv
        else:
            self._given_back[layer] = dk.to(torch.float32, copy=True), dv.to(torch.float32, copy=True)

    def keys_values_gradient(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> KeysValues:
        more = self._given_back.pop(layer, None)
        return (dk, dv) if more is None else _added((dk, dv), more)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pk, pv = self.prefix.keys_values[layer] if self.prefix else (None, None)
        return kernels().attend(q, k, v, pk, pv, self.layout, span.window, span.scale, span.soft_cap)

    def backward(
        self,
        layer: int,
        dmixed: torch.Tensor | None,
        attended: Attended,
        span: Span,
    ) -> Gradients:
        assert dmixed is not None
        q, k, v, mixed, state = attended
        pk, pv = self.prefix.keys_values[layer] if self.prefix else (None, None)
        dk, dv = self.prefix_grad.layers[layer] if self.prefix_grad else (None, None)
        return kernels().attend_backward(
            dmixed, q, k, v, pk, pv, mixed, state, self.layout, span.window, dk, dv, span.scale, span.soft_cap
        )


def _added(gradients: KeysValues, more: KeysValues) -> KeysValues:
    """Two gradients of keys and values together, in the first one's dtype."""
    dk, dv = ((one.float() + other).to(one.dtype) for one, other in zip(gradients, more, strict=True))
    return dk, dv


class PrefixAttention(PackedAttention):
    """Attention within a shared prefix, up to the keys and values of the last layer that has its own, which is all that
    examples need of it.

    Attributes:
        found: what its examples need of it, once the forward pass has gone through.
        received: the gradients that its examples have sent, added in the backward pass.
    """

    def __init__(self, length: int, last: int) -> None:
        super().__init__(Layout((0, length), 0))
        self.last = last
        self.found = SharedPrefix()
        self.received: PrefixGrad | None = None

    def stops_at_keys(self, layer: int) -> bool:
        return layer == self.last

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        self.found.keys_values.setdefault(layer, (k, v))  # a layer that is recomputed has them already

    def end_state(self, layer: int, states: torch.Tensor) -> None:
        self.found.states.setdefault(layer, states[0])

    def end_state_gradient(self, layer: int) -> torch.Tensor | None:
        found = self.received.states.get(layer) if self.received is not None else None
        return None if found is None else found[None]

    def backward(
        self,
        layer: int,
        dmixed: torch.Tensor | None,
        attended: Attended,
        span: Span,
    ) -> Gradients:
        if dmixed is None:
            dq, dk, dv = (torch.zeros_like(x) for x in attended[:3])
            return dq, dk, dv
        return super().backward(layer, dmixed, attended, span)

    def keys_values_gradient(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> KeysValues:
        dk, dv = super().keys_values_gradient(layer, dk, dv)
        return (dk, dv) if self.received is None else _added((dk, dv), self.received.layers[layer])
