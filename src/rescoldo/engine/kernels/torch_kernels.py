"""The engine's operations in plain PyTorch: what the kernels in C compute, written as the formulas say.

They are used where there are no native kernels, and the tests compare the kernels with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import LazyInt8, QuantizedMatrix
from rescoldo.engine.kernels.ops import NF4_BLOCK, NF4_LEVELS, Dropout, rotate
from rescoldo.engine.kernels.ops_int8 import (
    LowRankTerm,
    Outliers,
    Quantized,
    Segment,
    level_type,
    pack_panels,
    padded,
    unpack_panels,
)


class TorchKernels:
    """The operations in PyTorch; `native.NativeKernels` overrides them. T rows, D columns.

    Attributes:
        name: "pytorch", or the instruction set's.
        version: changes with the code that computes.
        qmax: the largest value of an int8 product's quantized inputs.
    """

    name = version = "pytorch"
    qmax = 127

    # --- norms, residual, MLP, rotary embedding -----------------------------------------------------------------------

    def rms_norm(
        self, h: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """RMSNorm (arXiv 1910.07467) of h (T, D) float32, in the dtype of its weight (D,).

        Returns:
            The normed and weighted rows (T, D), the normed rows without the weight (T, D), 1 / rms (T,) float32.
        """
        rstd = torch.rsqrt(h.pow(2).mean(-1) + eps)
        normed = (h * rstd[:, None]).to(weight.dtype)
        return normed * weight, normed, rstd

    def rms_norm_backward(
        self, dy: torch.Tensor, normed: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, dh: torch.Tensor
    ) -> None:
        """Add to dh (T, D) float32, in place, the gradient that dy (T, D) sends through y = normed · weight."""
        g = dy.float() * weight.float()
        x = normed.float()
        dh += rstd[:, None] * (g - x * (g * x).mean(-1, keepdim=True))

    def add_(self, h: torch.Tensor, y: torch.Tensor) -> None:
        """h (T, D) float32 += y (T, D)."""
        h += y

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """gate_up (T, 2F) → silu(gate) · up, (T, F) in its dtype."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)

    def silu_mul_backward_(self, gate_up: torch.Tensor, da: torch.Tensor) -> None:
        """Replace gate_up (T, 2F) by the gradient of silu(gate) · up, for da (T, F)."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        da = da.float()
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        dgate = da * up * (sigmoid + silu * (1 - sigmoid))
        gate_up.copy_(torch.cat((dgate, da * silu), dim=-1))

    def gelu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """gate_up (T, 2F) → gelu(gate) · up, (T, F) in its dtype; GELU in its tanh approximation (arXiv 1606.08415)."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (torch.nn.functional.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)

    def gelu_mul_backward_(self, gate_up: torch.Tensor, da: torch.Tensor) -> None:
        """Replace gate_up (T, 2F) by the gradient of gelu(gate) · up, for da (T, F)."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        da, near = da.float(), gate.clamp(-30.0, 30.0)  # beyond, GELU is x or 0
        sigmoid = torch.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (near + 0.044715 * near**3))
        slope = 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * near**2)
        dgate = da * up * (sigmoid + near * sigmoid * (1.0 - sigmoid) * slope)
        gate_up.copy_(torch.cat((dgate, da * gate * sigmoid), dim=-1))

    def rotate_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float = 1.0) -> None:
        """ops.rotate in place; sign -1: its inverse."""
        x.copy_(rotate(x, cos, sign * sin))

    # --- dropout, loss ------------------------------------------------------------------------------------------------

    def dropout(self, x: torch.Tensor, how: Dropout) -> torch.Tensor:
        """x (T, D) with some elements zeroed and the rest scaled, in a new tensor of x's dtype."""
        return torch.where(how.mask(x.shape[1]), x.float() * how.scale, 0.0).to(x.dtype)

    def dropout_backward(self, dx: torch.Tensor, dropped: torch.Tensor, how: Dropout | None) -> None:
        """Add to dx (T, D), in place, the gradient `dropped` (T, D) that arrives behind the dropout."""
        if how is not None:
            dropped = self.dropout(dropped, how)
        dx += dropped

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[float, torch.Tensor]:
        """logits (n, V), targets (n,) int64 → (summed loss in nats, weight · gradient (n, V) in logits' dtype)."""
        scores = logits.float()
        lse = torch.logsumexp(scores, dim=-1)
        loss = float((lse - scores.gather(1, targets[:, None])[:, 0]).double().sum())
        gradient = torch.exp(scores - lse[:, None])
        gradient[torch.arange(len(targets)), targets] -= 1
        return loss, (gradient * weight).to(logits.dtype)

    # --- int8 linears with their adapter ------------------------------------------------------------------------------

    def int8_pack(self, weight: torch.Tensor, channel_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """weight (out, in) times channel_scale (in,) float32, by rows → panels, scale of each row (out,) float32."""
        weight = weight.float() * channel_scale
        largest = weight.abs().amax(-1)
        inverse = torch.where(largest > 1e-30, 127.0 / largest, 0.0)
        return pack_panels((weight * inverse[:, None]).round().to(torch.int8)), largest / 127.0

    def int8_input(
        self,
        x: torch.Tensor,
        channel_scale: torch.Tensor | None,
        group: int | None,
        segments: Sequence[Segment],
        outliers: Outliers | None,
        width: int,
        mask: Dropout | None,
    ) -> tuple[Quantized | None, torch.Tensor]:
        """x (T, K) bfloat16 times channel_scale (K,) float32 → quantized rows (None for group None), and z (T, width).

        z gets the segments' products, whose input is x behind the dropout (in float32: the factor of what is kept is
        not rounded into x), and the outlier columns as they are.
        """
        t, k = x.shape
        z = torch.zeros(t, width)
        dropped = _behind(x, mask) if segments else x
        for s in segments:
            z[:, s.at : s.at + s.n] = dropped[:, s.start : s.end] @ s.b[:, : s.n]
        if outliers is not None:
            z[:, outliers.at : outliers.at + len(outliers.index)] = x.index_select(1, outliers.index).float()
        if group is None:
            return None, z
        full = torch.zeros(t, padded(k))
        full[:, :k] = x.float() if channel_scale is None else x.float() * channel_scale
        q, scales, sums = torch.empty(full.shape, dtype=level_type(self.qmax)), [], []
        for start in range(0, full.shape[1], group):
            part = full[:, start : start + group]
            largest = part.abs().amax(-1)
            inverse = torch.where(largest > 1e-30, self.qmax / largest, 0.0)  # no overflow
            rounded = (part * inverse[:, None]).round()
            q[:, start : start + group] = rounded.to(q.dtype)
            scales.append(largest / self.qmax)
            sums.append(128 * rounded.sum(-1, dtype=torch.float64).to(torch.int32))
        return Quantized(q, torch.stack(scales, 1), torch.stack(sums, 1) if self.qmax == 127 else None, group), z

    def int8_residual_(self, x: torch.Tensor, channel_scale: torch.Tensor | None, rows: Quantized) -> None:
        """x (T, K) bfloat16, in place: what quantizing it to `rows` has lost. Columns that are 0 become 0."""
        scale = rows.scale.repeat_interleave(rows.group, dim=1)[:, : rows.q.shape[1]]
        held = (rows.q.float() * scale)[:, : x.shape[1]]
        if channel_scale is None:
            x.copy_(x.float() - held)
        else:
            x.copy_(torch.where(channel_scale != 0, x.float() - held / channel_scale, 0.0))

    def int8_cross_entropy_(
        self, logits: torch.Tensor, targets: torch.Tensor, weight: float, channel_scale: torch.Tensor, group: int
    ) -> tuple[float, Quantized]:
        """`cross_entropy` whose gradient, times channel_scale (V,) float32, is quantized in groups of columns.

        In 8 bits each row of logits (n, V) is followed by what its quantization has lost, quantized in its turn: a row
        2i and a row 2i + 1 of (2n, V), whose products with the same weight are to be added. The logits are lost.

        Returns:
            The summed loss in nats, the quantized rows.
        """
        loss, gradient = self.cross_entropy(logits, targets, weight)
        rows, _ = self.int8_input(gradient, channel_scale, group, [], None, 0, None)
        assert rows is not None
        if self.qmax != 127:
            return loss, rows
        self.int8_residual_(gradient, channel_scale, rows)
        again, _ = self.int8_input(gradient, channel_scale, group, [], None, 0, None)
        assert again is not None
        assert rows.sum is not None
        assert again.sum is not None
        pairs = ((rows.q, again.q), (rows.scale, again.scale), (rows.sum, again.sum))
        q, scale, sums = (torch.stack(pair, 1).flatten(0, 1) for pair in pairs)
        return loss, Quantized(q, scale, sums, group)

    def int8_product(
        self,
        x: Quantized,
        weight: torch.Tensor | LazyInt8,
        outputs: int,
        channel_scale: torch.Tensor,
        low_rank: LowRankTerm | None,
        z: torch.Tensor,
        mask: Dropout | None,
        bias: torch.Tensor | None,
        *,
        backward: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x · Wᵀ (or, backward, x · W) times channel_scale (outputs,), plus mask · z · low_rank, plus bias.

        Weights in blocks are unpacked before. Returns (T, outputs) bfloat16, contiguous: `out` where it is given.
        """
        unpacked = unpack_panels(self.int8_unpack(weight) if isinstance(weight, LazyInt8) else weight)
        unpacked = unpacked if backward else unpacked.T
        y = torch.zeros(x.q.shape[0], unpacked.shape[1])
        for g, start in enumerate(range(0, x.q.shape[1], x.group)):
            rows = slice(start, start + x.group)
            y += _whole_product(x.q[:, rows].contiguous(), unpacked[rows]).float() * x.scale[:, g, None]
        y = y[:, :outputs] * channel_scale
        if low_rank is not None:
            extra = z @ low_rank.dense(z.shape[1], outputs)
            y += extra if mask is None else extra * mask.mask(outputs) * mask.scale
        if bias is not None:
            y += bias.float()
        return y.to(torch.bfloat16) if out is None else out.copy_(y)

    def outer_rows(
        self, z: torch.Tensor, x: torch.Tensor, mask: Dropout | None, factor: float, *, transposed: bool = False
    ) -> torch.Tensor:
        """factor · zᵀ · x, (R, C) float32, of z (T, R) float32 and x (T, C) bfloat16 behind the dropout; with
        `transposed` its transpose, (C, R). Contiguous."""
        out = factor * (z.T @ _behind(x, mask))
        return out.T.contiguous() if transposed else out

    # --- weights in blocks --------------------------------------------------------------------------------------------

    def nf4_pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """weight (out, in), in a multiple of 64 → codes (out, in/2) uint8, two a byte, low first; and their scales
        (out, in/64) bfloat16."""
        blocks = weight.float().unflatten(1, (-1, NF4_BLOCK))
        scales = blocks.abs().amax(-1).to(torch.bfloat16)
        unit = blocks / scales.float().clamp_min(1e-30)[:, :, None]
        edges = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
        codes = torch.bucketize(unit.flatten(1), edges, out_int32=True).to(torch.uint8)
        return codes[:, 0::2] | (codes[:, 1::2] << 4), scales

    def blocks_decode(self, parts: Sequence[QuantizedMatrix]) -> torch.Tensor:
        """All parts' rows, (out, in) float32."""
        return torch.cat([part.numbers() for part in parts])

    def blocks_widest(self, parts: Sequence[QuantizedMatrix]) -> torch.Tensor:
        """Each column's largest magnitude, (in,) float32."""
        return self.blocks_decode(parts).abs().amax(0)

    def blocks_scale(
        self, parts: Sequence[QuantizedMatrix], channel_scale: torch.Tensor, outliers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's largest magnitude behind its product with channel_scale (in,), (out,) float32; and the columns
        `outliers` (n,) as they are, (out, n) float32."""
        weight = self.blocks_decode(parts)
        return (weight * channel_scale).abs().amax(1), weight[:, outliers]

    def int8_unpack(self, lazy: LazyInt8) -> torch.Tensor:
        """The panels that ops_int8.int8_product takes."""
        weight = self.blocks_decode(lazy.parts) * lazy.channel_scale * lazy.inverse[:, None]
        return pack_panels(weight.round().to(torch.int8))

    # --- attention ----------------------------------------------------------------------------------------------------

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        layout: Layout,
        window: int | None,
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q (T, heads, d), k and v (T, kv heads, d), prefix_k and prefix_v (P, kv heads, d) or None.

        Scores are q · k · scale (1/√d where None); with soft_cap, soft_cap · tanh(score / soft_cap) (arXiv 2408.00118).

        Returns:
            (T, heads, d) in q's dtype, and what the backward pass needs besides: nothing here, an empty tensor.
        """
        out = torch.empty_like(q)
        n_kv = k.shape[1]
        for start, end in layout.spans():
            n = end - start
            queries = q[start:end].float().view(n, n_kv, -1, q.shape[2]).permute(1, 2, 0, 3)
            weights = _weights(queries, _with_prefix(k[start:end], prefix_k), layout.prefix, window, scale, soft_cap)[0]
            mixed = torch.einsum("hgsl,hld->shgd", weights, _with_prefix(v[start:end], prefix_v))
            out[start:end] = mixed.reshape(n, q.shape[1], q.shape[2])
        return out, torch.empty(0)

    def attend_backward(
        self,
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        out: torch.Tensor,
        saved: torch.Tensor,
        layout: Layout,
        window: int | None,
        dprefix_k: torch.Tensor | None,
        dprefix_v: torch.Tensor | None,
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients (dq, dk, dv) like (q, k, v) for dout (T, heads, d).

        The prefix's share is added to dprefix_k and dprefix_v (P, kv heads, d) float32, in place.
        """
        del out, saved
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        n_kv, d, p = k.shape[1], q.shape[2], layout.prefix
        for start, end in layout.spans():
            n = end - start
            queries = q[start:end].float().view(n, n_kv, -1, d).permute(1, 2, 0, 3)
            keys, values = _with_prefix(k[start:end], prefix_k), _with_prefix(v[start:end], prefix_v)
            weights, slope, divisor = _weights(queries, keys, p, window, scale, soft_cap)
            dmixed = dout[start:end].float().view(n, n_kv, -1, d).permute(1, 2, 0, 3)
            dvalues = torch.einsum("hgsl,hgsd->lhd", weights, dmixed)
            dweights = torch.einsum("hgsd,hld->hgsl", dmixed, values)
            dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
            dscores = (dscores if slope is None else dscores * slope) / divisor
            dkeys = torch.einsum("hgsl,hgsd->lhd", dscores, queries)
            dq[start:end] = torch.einsum("hgsl,hld->shgd", dscores, keys).reshape(n, -1, d)
            if dprefix_k is not None and dprefix_v is not None:
                dprefix_k += dkeys[:p]
                dprefix_v += dvalues[:p]
            dk[start:end], dv[start:end] = dkeys[p:], dvalues[p:]
        return dq, dk, dv

    def attend_cached(
        self,
        q: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: torch.Tensor,
        window: int | None,
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        """One new query a row against the prefix and the row's own cache (its newest key included).

        Args:
            q: (B, H, d). prefix_k, prefix_v: (P, K, d) or None. k, v: (B, L, K, d), valid up to lengths (B,).

        Returns:
            (B, H, d) in q's dtype.
        """
        b, heads, d = q.shape
        n_kv = k.shape[2]
        grouped = q.float().view(b, n_kv, heads // n_kv, d) * (d**-0.5 if scale is None else scale)
        longest = int(lengths.max())
        own = _capped(torch.einsum("bkgd,blkd->bkgl", grouped, k[:, :longest].float()), soft_cap)
        at = torch.arange(longest)[None, :]
        hidden = at >= lengths[:, None]
        if window is not None:
            hidden |= lengths[:, None] - 1 - at >= window
        own = own.masked_fill(hidden[:, None, None, :], -torch.inf)
        p = 0 if prefix_k is None else prefix_k.shape[0]
        if prefix_k is not None and prefix_v is not None:
            shared = _capped(torch.einsum("bkgd,lkd->bkgl", grouped, prefix_k.float()), soft_cap)
            if window is not None:
                gone = lengths[:, None] - 1 + p - torch.arange(p)[None, :] >= window
                shared = shared.masked_fill(gone[:, None, None, :], -torch.inf)
            own = torch.cat((shared, own), dim=-1)
        weights = own.softmax(-1)
        out = torch.einsum("bkgl,blkd->bkgd", weights[..., p:], v[:, :longest].float())
        if prefix_v is not None:
            out = out + torch.einsum("bkgl,lkd->bkgd", weights[..., :p], prefix_v.float())
        return out.reshape(b, heads, d).to(q.dtype)


def _behind(x: torch.Tensor, mask: Dropout | None) -> torch.Tensor:
    """x (T, K) behind the dropout, float32."""
    return x.float() if mask is None else torch.where(mask.mask(x.shape[1]), x.float() * mask.scale, 0.0)


def _capped(scores: torch.Tensor, soft_cap: float | None) -> torch.Tensor:
    return scores if soft_cap is None else soft_cap * torch.tanh(scores / soft_cap)


def _weights(
    q: torch.Tensor, k: torch.Tensor, prefix: int, window: int | None, scale: float | None, soft_cap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """q (kv heads, group, S, d), k (kv heads, P + S, d), both float32 → weights (kv heads, group, S, P + S), the cap's
    derivative (None without a cap), and what q · k is divided by."""
    divisor = math.sqrt(q.shape[-1]) if scale is None else 1.0 / scale
    scores = _capped(torch.einsum("hgsd,hld->hgsl", q, k) / divisor, soft_cap)
    slope = None if soft_cap is None else 1.0 - (scores / soft_cap) ** 2
    at = torch.arange(q.shape[2])[:, None] + prefix
    keys = torch.arange(k.shape[1])[None, :]
    hidden = keys > at
    if window is not None:
        hidden |= at - keys >= window
    return scores.masked_fill(hidden, -torch.inf).softmax(-1), slope, divisor


def _with_prefix(own: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
    """(S, kv heads, d) behind the prefix's (P, kv heads, d) → (kv heads, P + S, d) float32."""
    joined = own if shared is None else torch.cat((shared, own))
    return joined.float().transpose(0, 1)


def _whole_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a · b of whole numbers, without rounding."""
    return torch._int_mm(a, b) if a.dtype == b.dtype else a.double() @ b.double()
