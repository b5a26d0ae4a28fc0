"""The context of a pass for its layers' mixers: the packed rows of a micro-batch (training, prefill), or a KV cache
(decoding).

A layer is the same in all passes; they differ in the object that provides attention, and the state of mixers that have
a recurrent state instead of keys and values. T rows in n segments (examples, or rows of a batch), H heads, K key/value
heads, d head size, P tokens of a shared prefix.
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
    """What later rows need of a shared prefix, by layer.

    Attributes:
        keys_values: of layers with attention.
        states: of layers with a recurrent state: the state after the prefix's last token, in the mixer's own shape.
    """

    keys_values: dict[int, KeysValues] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PrefixGrad:
    """The gradients of the examples w.r.t. their shared prefix.

    Attributes:
        k, v: w.r.t. the keys and values of all layers, concatenated, float32.
        layers: the same by layer, (P, K, d) each, as views.
        states: by layer, w.r.t. its states.
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
    """What attention's backward pass needs: q (T, H, d), k and v (T, K, d), the output (T, H, d), and the kernel's own
    state."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mixed: torch.Tensor
    state: torch.Tensor


@dataclass(frozen=True)
class Span:
    """Which keys a layer's queries see, and how the scores are computed.

    Attributes:
        window: the sliding window in tokens; None: all earlier keys.
        scale: factor on the scores; None: 1 / √head_dim.
        soft_cap: the scores become cap · tanh(score / cap); None: unchanged.
    """

    window: int | None = None
    scale: float | None = None
    soft_cap: float | None = None


class Attend(Protocol):
    """What a layer's mixer needs from the pass."""

    @property
    def bounds(self) -> Sequence[int]:
        """Segment i has the rows bounds[i]..bounds[i+1]-1, in temporal order."""

    def stops_at_keys(self, layer: int) -> bool:
        """Whether only the keys and values (or the state) of this layer are needed."""

    def start_state(self, layer: int) -> torch.Tensor | None:
        """The recurrent states (n, …) at the beginning of the segments; None: zero."""

    def end_state(self, layer: int, states: torch.Tensor) -> None:
        """Store the states (n, …) after each segment's last row."""

    def end_state_gradient(self, layer: int) -> torch.Tensor | None:
        """The gradient (n, …) float32 w.r.t. the end states, from the rows that started from them; None: zero."""

    def start_state_gradient(self, layer: int, gradient: torch.Tensor) -> None:
        """Add the gradient (n, …) w.r.t. the start states to that of their source."""

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store a layer's keys and values (T, K, d), after rotation."""

    def share(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Make a layer's keys and values (T, K, d) available to later layers that attend to them."""

    def shared(self, layer: int) -> KeysValues:
        """The keys and values that `layer` has made available."""

    def add_shared_gradient(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> None:
        """Add the gradient (T, K, d) w.r.t. the shared keys and values of `layer`."""

    def keys_values_gradient(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> KeysValues:
        """The gradient (T, K, d) w.r.t. a layer's keys and values: its own, plus those from other layers and rows."""

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q (T, H, d), k and v (T, K, d) → the output (T, H, d), and the kernel's state for the backward pass; `layer`
        is the one that k and v belong to."""

    def backward(
        self,
        layer: int,
        dmixed: torch.Tensor | None,
        attended: Attended,
        span: Span,
    ) -> Gradients:
        """(dq, dk, dv) like (q, k, v) for dmixed (T, H, d); None: no gradient from attention's output."""


class PackedAttention:
    """Causal attention within each example of a packed micro-batch, and to the prefix that all of them share.

    Args:
        layout: the rows of each example.
        prefix: the shared prefix; None if there is none.
        prefix_grad: accumulates the gradients w.r.t. the prefix.
    """

    def __init__(
        self, layout: Layout, prefix: SharedPrefix | None = None, prefix_grad: PrefixGrad | None = None
    ) -> None:
        self.layout, self.prefix, self.prefix_grad = layout, prefix, prefix_grad
        self._shared: dict[int, KeysValues] = {}
        self._shared_gradients: dict[int, KeysValues] = {}  # float32

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

    def share(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        if layer not in self._shared:  # a recomputed layer has done this before
            self._shared[layer] = k.contiguous(), v.contiguous()

    def shared(self, layer: int) -> KeysValues:
        return self._shared[layer]

    def add_shared_gradient(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> None:
        if layer in self._shared_gradients:
            all_dk, all_dv = self._shared_gradients[layer]
            all_dk += dk
            all_dv += dv
        else:
            self._shared_gradients[layer] = dk.to(torch.float32, copy=True), dv.to(torch.float32, copy=True)

    def keys_values_gradient(self, layer: int, dk: torch.Tensor, dv: torch.Tensor) -> KeysValues:
        more = self._shared_gradients.pop(layer, None)
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
    """The sum of two gradients of keys and values, in the first one's dtype."""
    dk, dv = ((one.float() + other).to(one.dtype) for one, other in zip(gradients, more, strict=True))
    return dk, dv


class PrefixAttention(PackedAttention):
    """Attention within a shared prefix. The pass ends at the keys and values of the last layer that has its own,
    because examples need nothing more.

    Attributes:
        found: what its examples need, filled by the forward pass.
        received: the gradients from its examples, which the backward pass adds.
    """

    def __init__(self, length: int, last: int) -> None:
        super().__init__(Layout((0, length), 0))
        self.last = last
        self.found = SharedPrefix()
        self.received: PrefixGrad | None = None

    def stops_at_keys(self, layer: int) -> bool:
        return layer == self.last

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        self.found.keys_values.setdefault(layer, (k, v))  # a recomputed layer has done this before

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
