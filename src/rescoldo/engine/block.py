"""One decoder layer, forward and backward by hand, over the packed rows of a micro-batch.

By hand, because it is known here what frozen weights need for their backward pass and what they do not, what is cheap
to compute again, and where a shared prefix's keys and values come from. `reference.py` is the same in plain formulas.

T rows, D hidden size, F MLP size, H heads, K key/value heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.kernels.ops import Dropout, mix_key
from rescoldo.engine.lora import LoraGroup

SITES = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Rows:
    """The rows of one pass: where each example lies, each row's position, and what seeds its dropout.

    Attributes:
        layout: the examples' bounds and the length of the prefix before them.
        cos, sin: (T, d/2) float32, at the rows' positions.
        identity: (T,) int64 below 2³²: which row of the optimizer step this is, whatever micro-batch it comes in.
        seed: the run's seed and the optimizer step, or None where there is no dropout.
        threshold: dropout's probability in 256ths.
    """

    layout: Layout
    cos: torch.Tensor
    sin: torch.Tensor
    identity: torch.Tensor
    seed: tuple[int, int] | None = None
    threshold: int = 0

    def mask(self, layer: int, site: int) -> Dropout | None:
        """The dropout of one group of linears in one layer."""
        if self.seed is None or self.threshold == 0:
            return None
        return Dropout(self.threshold, mix_key(*self.seed, layer, site), self.identity)


@dataclass
class Saved:
    """What the backward pass needs of a layer's forward pass; all of it in the activations' dtype but the scales."""

    normed1: torch.Tensor  # (T, D) input / rms
    rstd1: torch.Tensor  # (T,)
    qkv: torch.Tensor  # (T, (H + 2K)·d), q and k rotated
    heads: tuple[torch.Tensor, ...]  # with q/k norms: normed q, its rstd, normed k, its rstd
    mixed: torch.Tensor  # (T, H·d) attention's output
    attention: torch.Tensor  # attention's own
    normed2: torch.Tensor | None  # (T, D); None: the layer stopped at its keys and values
    rstd2: torch.Tensor | None
    gate_up: torch.Tensor | None  # (T, 2F)
    z: tuple[torch.Tensor | None, ...]  # drop(x)·Aᵀ of the four groups


@dataclass
class PrefixGrad:
    """Gradients that examples send to the shared prefix's keys and values of one layer, (P, K, d) float32 each."""

    k: torch.Tensor
    v: torch.Tensor


class Block:
    """A layer's groups of linears and norms. Holds no activations."""

    def __init__(
        self,
        index: int,
        config: DecoderConfig,
        groups: dict[str, LoraGroup],
        norms: dict[str, torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.index, self.config, self.dtype = index, config, dtype
        self.qkv, self.o, self.gate_up, self.down = (groups[site] for site in SITES)
        self.norm1, self.norm2 = norms["input_layernorm"], norms["post_attention_layernorm"]
        self.q_norm, self.k_norm = norms.get("q_norm"), norms.get("k_norm")
        self.trains_attention = bool(self.qkv.adapted)

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """qkv (T, (H + 2K)·d) → views q (T, H, d), k (T, K, d), v (T, K, d)."""
        c = self.config
        parts = qkv.unflatten(1, (-1, c.head_dim)).split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=1)
        return parts[0], parts[1], parts[2]

    def norm_heads(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normalize q and k by head, in place (qwen3); returns what the backward pass needs."""
        if self.q_norm is None or self.k_norm is None:
            return ()
        saved: list[torch.Tensor] = []
        for x, weight in ((q, self.q_norm), (k, self.k_norm)):
            y, normed, rstd = kernels().rms_norm(x.float().flatten(0, 1), weight, self.config.norm_eps)
            x.copy_(y.view(x.shape))
            saved += [normed, rstd]
        return tuple(saved)

    def forward(
        self,
        h: torch.Tensor,
        rows: Rows,
        prefix: torch.Tensor | None,
        keys_only: bool = False,
    ) -> tuple[torch.Tensor, Saved]:
        """h (T, D) float32, changed in place and returned; `prefix` is this layer's qkv (P, …) of the shared prefix.

        With `keys_only` the layer stops once its keys and values are known (a prefix's last layer).
        """
        op, c = kernels(), self.config
        x, normed1, rstd1 = op.rms_norm(h, self.norm1, c.norm_eps)
        qkv, z1 = self.qkv.forward(x, rows.mask(self.index, 0))
        q, k, v = self.split(qkv)
        heads = self.norm_heads(q, k)
        op.rotate_(q, rows.cos, rows.sin)
        op.rotate_(k, rows.cos, rows.sin)
        if keys_only:
            empty = torch.empty(0)
            return h, Saved(normed1, rstd1, qkv, heads, empty, empty, None, None, None, (z1, None, None, None))
        pk, pv = self.split(prefix)[1:] if prefix is not None else (None, None)
        mixed, attention = op.attend(q, k, v, pk, pv, rows.layout, c.window(self.index))
        mixed = mixed.flatten(1)
        y, z2 = self.o.forward(mixed, rows.mask(self.index, 1))
        op.add_(h, y)
        x, normed2, rstd2 = op.rms_norm(h, self.norm2, c.norm_eps)
        gate_up, z3 = self.gate_up.forward(x, rows.mask(self.index, 2))
        y, z4 = self.down.forward(op.silu_mul(gate_up), rows.mask(self.index, 3))
        op.add_(h, y)
        return h, Saved(normed1, rstd1, qkv, heads, mixed, attention, normed2, rstd2, gate_up, (z1, z2, z3, z4))

    def backward(
        self,
        dh: torch.Tensor,
        saved: Saved,
        rows: Rows,
        prefix: torch.Tensor | None,
        prefix_grad: PrefixGrad | None,
        own_keys: PrefixGrad | None,
        gradients: dict[str, torch.Tensor],
        want_input: bool = True,
    ) -> None:
        """dh (T, D) float32: the gradient of the layer's output, in place made that of its input.

        Args:
            prefix, prefix_grad: qkv of the shared prefix before these rows, and where its gradients are collected.
            own_keys: for a prefix's own backward pass, what its examples sent to its keys and values.
            want_input: False in the lowest layer, whose input nobody trains.
        """
        op, c = kernels(), self.config
        dmixed: torch.Tensor | None = None
        if saved.normed2 is not None:
            self._backward_mlp(dh, saved, rows, gradients)
            dmixed = self.o.backward(dh.to(self.dtype), saved.mixed, saved.z[1], rows.mask(self.index, 1), gradients)
            assert dmixed is not None
        if not want_input and not self.trains_attention:
            return
        q, k, v = self.split(saved.qkv)
        if dmixed is not None:
            pk, pv = self.split(prefix)[1:] if prefix is not None else (None, None)
            dq, dk, dv = op.attend_backward(
                dmixed.view(q.shape), q, k, v, pk, pv, saved.mixed.view(q.shape), saved.attention, rows.layout,
                c.window(self.index), prefix_grad.k if prefix_grad else None, prefix_grad.v if prefix_grad else None,
            )  # fmt: skip
        else:
            dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        if own_keys is not None:
            dk = (dk.float() + own_keys.k).to(self.dtype)
            dv = (dv.float() + own_keys.v).to(self.dtype)
        op.rotate_(dq, rows.cos, rows.sin, -1.0)
        op.rotate_(dk, rows.cos, rows.sin, -1.0)
        dq, dk = self._backward_heads(dq, dk, saved.heads)
        dqkv = _side_by_side(dq, dk, dv)
        x = saved.normed1 * self.norm1
        dx = self.qkv.backward(dqkv, x, saved.z[0], rows.mask(self.index, 0), gradients, want_input)
        if dx is not None:
            op.rms_norm_backward(dx, saved.normed1, saved.rstd1, self.norm1, dh)

    def _backward_mlp(self, dh: torch.Tensor, saved: Saved, rows: Rows, gradients: dict[str, torch.Tensor]) -> None:
        op = kernels()
        assert saved.gate_up is not None
        assert saved.normed2 is not None
        assert saved.rstd2 is not None
        a = op.silu_mul(saved.gate_up) if self.down.adapted else saved.gate_up
        da = self.down.backward(dh.to(self.dtype), a, saved.z[3], rows.mask(self.index, 3), gradients)
        assert da is not None
        op.silu_mul_backward_(saved.gate_up, da)
        x = saved.normed2 * self.norm2
        dx = self.gate_up.backward(saved.gate_up, x, saved.z[2], rows.mask(self.index, 2), gradients)
        assert dx is not None
        op.rms_norm_backward(dx, saved.normed2, saved.rstd2, self.norm2, dh)

    def _backward_heads(
        self, dq: torch.Tensor, dk: torch.Tensor, heads: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not heads or self.q_norm is None or self.k_norm is None:
            return dq, dk
        out = []
        for grad, normed, rstd, weight in ((dq, *heads[:2], self.q_norm), (dk, *heads[2:], self.k_norm)):
            dx = torch.zeros(normed.shape, dtype=torch.float32)
            kernels().rms_norm_backward(grad.flatten(0, 1), normed, rstd, weight, dx)
            out.append(dx.to(self.dtype).view(grad.shape))
        return out[0], out[1]


def _side_by_side(dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> torch.Tensor:
    """(T, H, d), (T, K, d), (T, K, d) → (T, (H + 2K)·d), without a copy where they are already parts of one tensor."""
    t, width = dq.shape[0], dq.shape[1] * dq.shape[2] + 2 * dk.shape[1] * dk.shape[2]
    size = dq.element_size()
    follows = dq.data_ptr() + dq.shape[1] * dq.shape[2] * size == dk.data_ptr()
    follows &= dk.data_ptr() + dk.shape[1] * dk.shape[2] * size == dv.data_ptr()
    if follows and dq.stride(0) == dk.stride(0) == dv.stride(0) == width:
        return dq.as_strided((t, width), (width, 1))
    return torch.cat((dq.flatten(1), dk.flatten(1), dv.flatten(1)), dim=1)
