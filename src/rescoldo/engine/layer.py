"""One decoder layer with a hand-written backward pass: two sublayers, each a part (attention, MLP) between its norms.

It is hand-written because frozen weights need less for their backward pass than autograd would keep, and because some
activations are cheap to recompute. `reference.py` has the same in plain formulas.

A layer is composed of objects with the interface `Part`: another mixer than attention, or another MLP, is another
class. T rows, D hidden size, F MLP size, H heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from rescoldo.engine.activation import ACTIVATIONS
from rescoldo.engine.attend import Attend, Attended, Span
from rescoldo.engine.config import (
    LAYER_GATE,
    LAYER_NORM,
    LAYER_PROJECTION,
    LAYER_SCALAR,
    NORMS,
    SITES,
    DecoderConfig,
)
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.kernels.ops import Dropout, mix_key
from rescoldo.engine.linear import PlainLinear
from rescoldo.engine.lora import Kept, LoraGroup
from rescoldo.engine.rope import Rotation

Grads = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """The rows of one pass: each row's rotation, and the seed of its dropout.

    Attributes:
        rope: the rows' rotations by kind of layer (DecoderConfig.rope).
        identity: (T,) int64 below 2³²: identifies each row within the optimizer step, independent of micro-batches.
        seed: the run's seed and the optimizer step; None without dropout.
        threshold: dropout's probability in 256ths.
        bare: the first so many rows are computed without the adapter, as the base model's (no backward pass).
        layer_inputs: by layer the rows of its own embeddings, (T, p), in models that have them; the forward pass makes
            them (`layer_inputs.LayerEmbeddings`).
    """

    rope: Mapping[str, Rotation]
    identity: torch.Tensor
    seed: tuple[int, int] | None = None
    threshold: int = 0
    bare: int = 0
    layer_inputs: list[torch.Tensor] = field(default_factory=list)

    def mask(self, layer: int, site: str) -> Dropout | None:
        """The dropout mask of one group of linears in one layer."""
        if self.seed is None or self.threshold == 0:
            return None
        return Dropout(self.threshold, mix_key(*self.seed, layer, SITES.index(site)), self.identity)


class Part(Protocol):
    """The function between a sublayer's norms. `saved` is whatever its backward pass needs."""

    @property
    def groups(self) -> Mapping[str, LoraGroup]:
        """Its groups of linears by their site."""

    def forward(self, x: torch.Tensor, rows: Rows, attend: Attend) -> tuple[torch.Tensor | None, Any]:
        """x (T, D) → y (T, D) in its dtype, and `saved`; y is None if the pass ends here (Attend.stops_at_keys)."""

    def backward(
        self,
        dy: torch.Tensor | None,
        x: Callable[[], torch.Tensor],
        saved: Any,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool,
    ) -> torch.Tensor | None:
        """Add the adapters' gradients to `gradients`; returns dx (T, D), or None if it is not wanted and not needed.

        dy (T, D) is the gradient w.r.t. y, None if the forward pass ended here; x() recomputes the input. `saved` may
        be overwritten.
        """


@dataclass
class AttentionSaved:
    """What attention's backward pass needs, in the activations' dtype except for the norms' scales."""

    qkv: torch.Tensor  # (T, (H + 2K)·d), q and k rotated; (T, H·d) if k and v are another layer's
    heads: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # of the norms by head of q, k and v: normalized, rstd
    mixed: torch.Tensor | None  # (T, H·d) attention's output; None: the pass ended at the keys and values
    state: torch.Tensor | None  # the attention kernel's own state
    kept: tuple[Kept, Kept]  # of the groups qkv and o


class Attention:
    """Grouped-query attention with rotary positions."""

    def __init__(
        self, index: int, config: DecoderConfig, groups: Mapping[str, LoraGroup], norms: Mapping[str, torch.Tensor]
    ) -> None:
        self.index, self.config = index, config
        self.groups: Mapping[str, LoraGroup] = {site: groups[site] for site in ("qkv", "o")}
        self.qkv, self.o = groups["qkv"], groups["o"]
        self.head_dim = config.head_size(index)
        self.head_norms = [norms[name] for name in ("self_attn.q_norm", "self_attn.k_norm") if name in norms]
        self.source = config.kv_source(index)  # the layer whose keys and values it attends to
        self.attends_elsewhere = self.source != index
        self.lends = index in config.kv_sources[index + 1 :]
        if config.v_norm and not self.attends_elsewhere:
            self.head_norms.append(torch.ones(self.head_dim, dtype=self.head_norms[0].dtype))
        self.span = Span(config.window(index), config.attention_scale, config.attention_cap)
        self.rope = config.rope(index)
        self.rotary_dim = config.rotary_dim or self.head_dim

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """qkv (T, (H + 2K)·d) → views q (T, H, d), k (T, K, d), v (T, K, d); only q if k and v are another layer's."""
        c = self.config
        heads = [c.n_heads] if self.attends_elsewhere else [c.n_heads, c.n_kv_heads, c.n_kv_heads]
        return tuple(torch.split(qkv.unflatten(1, (-1, self.head_dim)), heads, dim=1))

    def forward(self, x: torch.Tensor, rows: Rows, attend: Attend) -> tuple[torch.Tensor | None, AttentionSaved]:
        """See Part."""
        qkv, z1 = self.qkv.forward(x, rows.mask(self.index, "qkv"), rows.bare)
        own = self.split(qkv)
        heads = self._norm(own)
        self._rotate(own, rows, 1.0)
        if not self.attends_elsewhere:
            attend.keys_values(self.index, *own[1:])
        if self.lends:
            attend.share(self.index, *own[1:])
        if attend.stops_at_keys(self.index):
            return None, AttentionSaved(qkv, heads, None, None, (z1, None))
        q, (k, v) = own[0], attend.shared(self.source) if self.attends_elsewhere else own[1:]
        mixed, state = attend.forward(self.source, q, k, v, self.span)
        mixed = mixed.flatten(1)
        y, z2 = self.o.forward(mixed, rows.mask(self.index, "o"), rows.bare)
        return y, AttentionSaved(qkv, heads, mixed, state, (z1, z2))

    def backward(
        self,
        dy: torch.Tensor | None,
        x: Callable[[], torch.Tensor],
        saved: AttentionSaved,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool,
    ) -> torch.Tensor | None:
        """See Part."""
        own = self.split(saved.qkv)
        q, (k, v) = own[0], attend.shared(self.source) if self.attends_elsewhere else own[1:]
        dmixed: torch.Tensor | None = None
        mixed, state = q, q  # placeholders, not used if the pass ended at its keys and values
        if dy is not None:
            assert saved.mixed is not None
            assert saved.state is not None
            further = want_input or bool(self.qkv.adapted)
            dmixed = self.o.backward(dy, saved.mixed, saved.kept[1], rows.mask(self.index, "o"), gradients, further)
            if dmixed is None:
                return None
            dmixed, mixed, state = dmixed.view(q.shape), saved.mixed.view(q.shape), saved.state
        elif not want_input and not self.qkv.adapted:
            return None
        dq, dk, dv = attend.backward(self.source, dmixed, Attended(q, k, v, mixed, state), self.span)
        if self.attends_elsewhere:
            attend.add_shared_gradient(self.source, dk, dv)
            grads: tuple[torch.Tensor, ...] = (dq,)
        else:
            grads = (dq, *attend.keys_values_gradient(self.index, dk, dv))
        self._rotate(grads, rows, -1.0)
        grads = self._norm_backward(grads, saved.heads)
        dqkv = grads[0].flatten(1) if self.attends_elsewhere else _side_by_side(*grads)
        return self.qkv.backward(dqkv, x(), saved.kept[0], rows.mask(self.index, "qkv"), gradients, want_input)

    def _rotate(self, heads: Sequence[torch.Tensor], rows: Rows, sign: float) -> None:
        """Rotate q, and k if there is one, in place; with sign -1 their gradients, by the transpose."""
        if self.rope == "none":
            return
        keys = rows.rope[self.rope]
        for x, (cos, sin) in zip(heads, (rows.rope.get(f"{self.rope} queries", keys), keys), strict=False):
            whole = self.rotary_dim == self.head_dim
            kernels().rotate_(x if whole else x[..., : self.rotary_dim], cos, sin, sign)

    def _grouped(self, x: torch.Tensor) -> torch.Tensor:
        """(T, heads, d) → the rows that a q/k norm normalizes."""
        return x.flatten(1).contiguous() if self.config.qk_norm_full else x.flatten(0, 1)

    def _norm(self, heads: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Normalize those of q, k and v that have a norm, in place; returns what the backward pass needs."""
        saved: list[tuple[torch.Tensor, torch.Tensor]] = []
        for x, weight in zip(heads, self.head_norms, strict=False):
            y, normed, rstd = kernels().rms_norm(self._grouped(x.float()), weight, self.config.norm_eps)
            x.copy_(y.view(x.shape))
            saved.append((normed, rstd))
        return tuple(saved)

    def _norm_backward(
        self, grads: tuple[torch.Tensor, ...], saved: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    ) -> tuple[torch.Tensor, ...]:
        """The gradients w.r.t. q, k and v → those before their norms."""
        out = []
        for grad, weight, (normed, rstd) in zip(grads, self.head_norms, saved, strict=False):
            dx = torch.zeros(normed.shape, dtype=torch.float32)
            kernels().rms_norm_backward(self._grouped(grad), normed, rstd, weight, dx)
            out.append(dx.to(grad.dtype).view(grad.shape))
        return (*out, *grads[len(out) :])


@dataclass
class MlpSaved:
    """What the MLP's backward pass needs."""

    gate_up: torch.Tensor  # (T, 2F); the backward pass overwrites it with its gradient
    kept: tuple[Kept, Kept]  # of the groups gate_up and down


class Mlp:
    """The gated MLP: down(activation(gate(x)) · up(x))."""

    def __init__(self, index: int, config: DecoderConfig, groups: Mapping[str, LoraGroup]) -> None:
        self.index, self.activation = index, ACTIVATIONS[config.activation]
        self.groups: Mapping[str, LoraGroup] = {site: groups[site] for site in ("gate_up", "down")}
        self.gate_up, self.down = groups["gate_up"], groups["down"]

    def forward(self, x: torch.Tensor, rows: Rows, attend: Attend) -> tuple[torch.Tensor | None, MlpSaved]:
        """See Part."""
        gate_up, z1 = self.gate_up.forward(x, rows.mask(self.index, "gate_up"), rows.bare)
        y, z2 = self.down.forward(self.activation.forward(gate_up), rows.mask(self.index, "down"), rows.bare)
        return y, MlpSaved(gate_up, (z1, z2))

    def backward(
        self,
        dy: torch.Tensor | None,
        x: Callable[[], torch.Tensor],
        saved: MlpSaved,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool,
    ) -> torch.Tensor | None:
        """See Part."""
        assert dy is not None
        a = self.activation.forward(saved.gate_up) if self.down.adapted else saved.gate_up
        further = want_input or bool(self.gate_up.adapted)
        da = self.down.backward(dy, a, saved.kept[1], rows.mask(self.index, "down"), gradients, further)
        if da is None:
            return None
        self.activation.backward_(saved.gate_up, da)
        return self.gate_up.backward(
            saved.gate_up, x(), saved.kept[0], rows.mask(self.index, "gate_up"), gradients, want_input
        )


class LayerInput:
    """The contribution of a layer's own embeddings e (T, p): projection(activation(gate(x)) · e). No adapters."""

    def __init__(self, index: int, config: DecoderConfig, tensors: Mapping[str, torch.Tensor]) -> None:
        self.index, self.activation = index, ACTIVATIONS[config.activation]
        self.gate, self.projection = (
            PlainLinear([tensors[n]], tensors[n].dtype) for n in (LAYER_GATE, LAYER_PROJECTION)
        )
        self.groups: Mapping[str, LoraGroup] = {}

    def forward(self, x: torch.Tensor, rows: Rows, attend: Attend) -> tuple[torch.Tensor | None, torch.Tensor]:
        """See Part."""
        gated = torch.cat((self.gate.forward(x), rows.layer_inputs[self.index]), dim=1)
        return self.projection.forward(self.activation.forward(gated)), gated

    def backward(
        self,
        dy: torch.Tensor | None,
        x: Callable[[], torch.Tensor],
        saved: torch.Tensor,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool,
    ) -> torch.Tensor | None:
        """See Part."""
        assert dy is not None
        self.activation.backward_(saved, self.projection.input_grad(dy))
        return self.gate.input_grad(saved[:, : self.gate.out_features].contiguous())


@dataclass
class SublayerSaved:
    """What a sublayer's backward pass needs."""

    normed: torch.Tensor  # (T, D) input / rms; the input itself if there is no norm before the part
    rstd: torch.Tensor | None  # (T,)
    part: Any
    post: tuple[torch.Tensor, torch.Tensor] | None = None  # of the norm after the part: normalized (T, D), rstd (T,)
    ended: bool = False  # the pass ended inside the part


class Sublayer:
    """h += scale · post(part(pre(h))), where either norm may be missing."""

    def __init__(
        self,
        part: Part,
        pre: torch.Tensor | None,
        post: torch.Tensor | None,
        config: DecoderConfig,
        dtype: torch.dtype,
    ) -> None:
        self.part, self.pre, self.post, self.dtype = part, pre, post, dtype
        self.eps, self.scale = config.norm_eps, config.residual_scale

    @property
    def trained(self) -> bool:
        """Whether any of its linears has an adapter."""
        return any(group.adapted for group in self.part.groups.values())

    def forward(self, h: torch.Tensor, rows: Rows, attend: Attend) -> SublayerSaved:
        """h (T, D) float32, overwritten with the output."""
        op = kernels()
        if self.pre is not None:
            x, normed, rstd = op.rms_norm(h, self.pre, self.eps)
            saved = SublayerSaved(normed, rstd, None)
        else:
            x = h.to(self.dtype, copy=True)
            saved = SublayerSaved(x, None, None)
        y, saved.part = self.part.forward(x, rows, attend)
        if y is None:
            saved.ended = True
            return saved
        if self.post is not None:
            y, normed, rstd = op.rms_norm(y.float(), self.post, self.eps)
            saved.post = normed, rstd
        if self.scale == 1.0:
            op.add_(h, y)
        else:
            h.add_(y, alpha=self.scale)
        return saved

    def backward(
        self,
        dh: torch.Tensor,
        saved: SublayerSaved,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool = True,
    ) -> None:
        """dh (T, D) float32: the gradient w.r.t. the output, overwritten with the gradient w.r.t. the input."""
        op = kernels()
        dy: torch.Tensor | None = None
        if not saved.ended:
            dy = (dh if self.scale == 1.0 else dh * self.scale).to(self.dtype)
            if saved.post is not None and self.post is not None:
                before = torch.zeros_like(dh)
                op.rms_norm_backward(dy, *saved.post, self.post, before)
                dy = before.to(self.dtype)
        pre = self.pre
        x = (lambda: saved.normed) if pre is None else (lambda: saved.normed * pre)
        dx = self.part.backward(dy, x, saved.part, rows, attend, gradients, want_input)
        if dx is None:
            return
        if pre is None or saved.rstd is None:
            op.add_(dh, dx)
        else:
            op.rms_norm_backward(dx, saved.normed, saved.rstd, pre, dh)


# Values of DecoderConfig.mixer. A mixer with a recurrent state gets it from `attend`, in addition to the KV cache.
MIXERS: dict[str, Callable[[int, DecoderConfig, Mapping[str, LoraGroup], Mapping[str, torch.Tensor]], Part]] = {
    "attention": Attention,
}
# values of DecoderConfig.mlp
MLPS: dict[str, Callable[[int, DecoderConfig, Mapping[str, LoraGroup]], Part]] = {"gated": Mlp}


@dataclass
class LayerSaved:
    """What a layer's backward pass needs."""

    mixer: SublayerSaved
    mlp: SublayerSaved | None  # None: the pass ended at this layer's keys and values
    input: SublayerSaved | None = None  # of the layer's own embeddings


class Layer:
    """A decoder layer: a mixer of rows (attention), then an MLP; in some families also the contribution of its own
    embeddings, and a factor on the output. It holds no activations.

    Args:
        tensors: its norms by name, and the tensors of DecoderConfig.input_shapes, in `dtype`.
    """

    def __init__(
        self,
        index: int,
        config: DecoderConfig,
        groups: Mapping[str, LoraGroup],
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.index, self.config, self.tensors, self.dtype = index, config, tensors, dtype
        (pre1, post1), (pre2, post2) = NORMS[config.norm_placement]
        mixer = MIXERS[config.mixer(index)](index, config, groups, tensors)
        mlp = MLPS[config.mlp](index, config, groups)
        self.mixer = Sublayer(mixer, tensors.get(pre1), tensors.get(post1), config, dtype)
        self.mlp = Sublayer(mlp, tensors.get(pre2), tensors.get(post2), config, dtype)
        self.input: Sublayer | None = None
        if LAYER_GATE in tensors:
            self.input = Sublayer(LayerInput(index, config, tensors), None, tensors[LAYER_NORM], config, dtype)
        self.scalar = float(tensors[LAYER_SCALAR]) if LAYER_SCALAR in tensors else 1.0

    @property
    def groups(self) -> dict[str, LoraGroup]:
        """All groups of linears by their site."""
        return {**self.mixer.part.groups, **self.mlp.part.groups}

    def with_groups(self, groups: Mapping[str, LoraGroup]) -> Layer:
        """The same layer with other groups of linears, sharing its norms."""
        return Layer(self.index, self.config, groups, self.tensors, self.dtype)

    def forward(self, h: torch.Tensor, rows: Rows, attend: Attend) -> tuple[torch.Tensor, LayerSaved]:
        """h (T, D) float32, overwritten with the layer's output and returned."""
        mixer = self.mixer.forward(h, rows, attend)
        if mixer.ended:
            return h, LayerSaved(mixer, None)
        saved = LayerSaved(mixer, self.mlp.forward(h, rows, attend))
        if self.input is not None:
            saved.input = self.input.forward(h, rows, attend)
        if self.scalar != 1.0:
            h.mul_(self.scalar)
        return h, saved

    def backward(
        self,
        dh: torch.Tensor,
        saved: LayerSaved,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool = True,
    ) -> None:
        """dh (T, D) float32: the gradient w.r.t. the output, overwritten with the gradient w.r.t. the input (except
        with `want_input` False: in the lowest layer with an adapter, whose input depends on no trained parameter)."""
        through_mixer = want_input or self.mixer.trained
        if self.scalar != 1.0 and saved.mlp is not None:
            dh.mul_(self.scalar)
        if self.input is not None and saved.input is not None:
            self.input.backward(dh, saved.input, rows, attend, gradients)
        if saved.mlp is not None and (through_mixer or self.mlp.trained):
            self.mlp.backward(dh, saved.mlp, rows, attend, gradients, through_mixer)
        if through_mixer:
            self.mixer.backward(dh, saved.mixer, rows, attend, gradients, want_input)


def _side_by_side(dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> torch.Tensor:
    """(T, H, d), (T, K, d), (T, K, d) → (T, (H + 2K)·d), without a copy if they already are parts of one tensor."""
    t, width = dq.shape[0], dq.shape[1] * dq.shape[2] + 2 * dk.shape[1] * dk.shape[2]
    size = dq.element_size()
    follows = dq.data_ptr() + dq.shape[1] * dq.shape[2] * size == dk.data_ptr()
    follows &= dk.data_ptr() + dk.shape[1] * dk.shape[2] * size == dv.data_ptr()
    if follows and dq.stride(0) == dk.stride(0) == dv.stride(0) == width:
        return dq.as_strided((t, width), (width, 1))
    return torch.cat((dq.flatten(1), dk.flatten(1), dv.flatten(1)), dim=1)
