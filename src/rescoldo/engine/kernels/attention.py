"""Causal attention of a packed micro-batch over a shared prefix, forward and backward, in plain PyTorch float32.

`native` holds the same two functions for bfloat16 in C. Rows of several examples lie one behind the other; each example
attends to the prefix's keys and values and to its own earlier rows (within the layer's window).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """Where the examples of a packed micro-batch lie: example i has rows bounds[i]..bounds[i+1]-1, after `prefix`
    tokens that they all share."""

    bounds: Sequence[int]
    prefix: int

    def spans(self) -> list[tuple[int, int]]:
        """(first row, row behind the last) of each example."""
        return list(zip(self.bounds[:-1], self.bounds[1:], strict=True))


def _weights(q: torch.Tensor, k: torch.Tensor, prefix: int, window: int | None) -> torch.Tensor:
    """q (kv heads, group, S, d), k (kv heads, P + S, d), both float32 → weights (kv heads, group, S, P + S)."""
    scores = torch.einsum("hgsd,hld->hgsl", q, k) / math.sqrt(q.shape[-1])
    at = torch.arange(q.shape[2])[:, None] + prefix
    keys = torch.arange(k.shape[1])[None, :]
    hidden = keys > at
    if window is not None:
        hidden |= at - keys >= window
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def _with_prefix(own: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
    """(S, kv heads, d) behind the prefix's (P, kv heads, d) → (kv heads, P + S, d) float32."""
    joined = own if shared is None else torch.cat((shared, own))
    return joined.float().transpose(0, 1)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix_k: torch.Tensor | None,
    prefix_v: torch.Tensor | None,
    layout: Layout,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (T, heads, d), k and v (T, kv heads, d), prefix_k and prefix_v (P, kv heads, d) or None.

    Returns:
        (T, heads, d) in q's dtype, and what the backward pass needs besides: nothing here, an empty tensor.
    """
    out = torch.empty_like(q)
    n_kv = k.shape[1]
    for start, end in layout.spans():
        n = end - start
        queries = q[start:end].float().view(n, n_kv, -1, q.shape[2]).permute(1, 2, 0, 3)
        weights = _weights(queries, _with_prefix(k[start:end], prefix_k), layout.prefix, window)
        mixed = torch.einsum("hgsl,hld->shgd", weights, _with_prefix(v[start:end], prefix_v))
        out[start:end] = mixed.reshape(n, q.shape[1], q.shape[2])
    return out, torch.empty(0)


def attend_backward(
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
        weights = _weights(queries, keys, p, window)
        dmixed = dout[start:end].float().view(n, n_kv, -1, d).permute(1, 2, 0, 3)
        dvalues = torch.einsum("hgsl,hgsd->lhd", weights, dmixed)
        dweights = torch.einsum("hgsd,hld->hgsl", dmixed, values)
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) / math.sqrt(d)
        dkeys = torch.einsum("hgsl,hgsd->lhd", dscores, queries)
        dq[start:end] = torch.einsum("hgsl,hld->shgd", dscores, keys).reshape(n, -1, d)
        if dprefix_k is not None and dprefix_v is not None:
            dprefix_k += dkeys[:p]
            dprefix_v += dvalues[:p]
        dk[start:end], dv[start:end] = dkeys[p:], dvalues[p:]
    return dq, dk, dv


def attend_cached(
    q: torch.Tensor,
    prefix_k: torch.Tensor | None,
    prefix_v: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """One new query a row against the prefix and the row's own cache (its newest key included).

    Args:
        q: (B, H, d). prefix_k, prefix_v: (P, K, d) or None. k, v: (B, L, K, d), valid up to lengths (B,).

    Returns:
        (B, H, d) in q's dtype.
    """
    b, heads, d = q.shape
    n_kv = k.shape[2]
    grouped = q.float().view(b, n_kv, heads // n_kv, d) * d**-0.5
    longest = int(lengths.max())
    own = torch.einsum("bkgd,blkd->bkgl", grouped, k[:, :longest].float())
    at = torch.arange(longest)[None, :]
    hidden = at >= lengths[:, None]
    if window is not None:
        hidden |= lengths[:, None] - 1 - at >= window
    own = own.masked_fill(hidden[:, None, None, :], -torch.inf)
    p = 0 if prefix_k is None else prefix_k.shape[0]
    if prefix_k is not None and prefix_v is not None:
        shared = torch.einsum("bkgd,lkd->bkgl", grouped, prefix_k.float())
        if window is not None:
            gone = lengths[:, None] - 1 + p - torch.arange(p)[None, :] >= window
            shared = shared.masked_fill(gone[:, None, None, :], -torch.inf)
        own = torch.cat((shared, own), dim=-1)
    weights = own.softmax(-1)
    out = torch.einsum("bkgl,blkd->bkgd", weights[..., p:], v[:, :longest].float())
    if prefix_v is not None:
        out = out + torch.einsum("bkgl,lkd->bkgd", weights[..., :p], prefix_v.float())
    return out.reshape(b, heads, d).to(q.dtype)
