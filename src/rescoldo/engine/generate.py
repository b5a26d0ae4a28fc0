"""Batched decoding: all prompts at once, their common beginning computed once, rows leaving as they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from rescoldo.engine.block import Block
from rescoldo.engine.dispatch import kernels
from rescoldo.engine.model import LoraModel
from rescoldo.engine.ops import mix_key
from rescoldo.engine.prefix import PrefixGroup, group_by_prefix
from rescoldo.engine.types import Example, Generated, Sampling

_GROWTH = 128  # tokens by which a cache grows


class Cache:
    """Keys and values of a batch: the prefix's once, each row's own behind it.

    Attributes:
        prefix_k, prefix_v: a layer's (P, K, d) each, or None.
        k, v: a layer's (B, capacity, K, d) each.
        lengths: (B,) int64, own tokens of each row.
    """

    def __init__(self, model: LoraModel, batch: int, prefix: int) -> None:
        self.config, self.dtype, self.prefix = model.config, model.dtype, prefix
        self.prefix_k: list[torch.Tensor | None] = [None] * self.config.n_layers
        self.prefix_v: list[torch.Tensor | None] = [None] * self.config.n_layers
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        shape = (batch, 0, self.config.n_kv_heads, self.config.head_dim)
        self.k = [torch.empty(shape, dtype=self.dtype) for _ in range(self.config.n_layers)]
        self.v = [torch.empty(shape, dtype=self.dtype) for _ in range(self.config.n_layers)]

    def reserve(self, length: int) -> None:
        """Make room for `length` own tokens a row."""
        have = self.k[0].shape[1]
        if length <= have:
            return
        want = (length + _GROWTH - 1) // _GROWTH * _GROWTH
        for caches in (self.k, self.v):
            for i, old in enumerate(caches):
                new = torch.zeros(old.shape[0], want, *old.shape[2:], dtype=self.dtype)
                new[:, :have] = old
                caches[i] = new

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these (indices)."""
        self.lengths = self.lengths[rows]
        for caches in (self.k, self.v):
            for i, old in enumerate(caches):
                caches[i] = old.index_select(0, rows)


def _prefill(model: LoraModel, prompts: Sequence[Sequence[int]], group: PrefixGroup) -> tuple[Cache, torch.Tensor]:
    """The cache of a group's prompts and the last hidden state of each (B, D) float32."""
    p = group.length
    cache = Cache(model, len(group.indices), p)
    prefix = None
    if p:
        prefix = model.forward_prefix(torch.tensor(prompts[group.indices[0]][:p]), model.rows((0, p), 0))
        for i, block in enumerate(model.blocks):
            k, v = block.split(prefix[i].qkv)[1:]
            cache.prefix_k[i], cache.prefix_v[i] = k.contiguous(), v.contiguous()
    cache.reserve(max(len(prompts[i]) for i in group.indices) - p)
    last = []
    for row, i in enumerate(group.indices):
        tokens = torch.tensor(prompts[i][p:])
        n = len(tokens)
        h, rows = model.embed(tokens), model.rows((0, n), p)
        for layer, block in enumerate(model.blocks):
            h, saved = block.forward(h, rows, prefix[layer] if prefix else None)
            _, k, v = block.split(saved.qkv)
            cache.k[layer][row, :n], cache.v[layer][row, :n] = k, v
        cache.lengths[row] = n
        last.append(h[-1])
    return cache, torch.stack(last)


def _step(model: LoraModel, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
    """One decoding step: tokens (B,) appended to the cache; returns the hidden state (B, D) float32."""
    op, c = kernels(), model.config
    b = len(tokens)
    cache.reserve(int(cache.lengths.max()) + 1)
    positions = cache.lengths + cache.prefix
    cos, sin = model.tables(int(positions.max()) + 1)
    cos, sin = cos[positions], sin[positions]
    every = torch.arange(b)
    h = model.embed(tokens)
    for i, block in enumerate(model.blocks):
        q = _keys_values(block, h, cos, sin, cache, i, every)
        mixed = op.attend_cached(
            q, cache.prefix_k[i], cache.prefix_v[i], cache.k[i], cache.v[i], cache.lengths + 1, c.window(i)
        )
        y, _ = block.o.forward(mixed.flatten(1), None)
        op.add_(h, y)
        x, _, _ = op.rms_norm(h, block.norm2, c.norm_eps)
        gate_up, _ = block.gate_up.forward(x, None)
        y, _ = block.down.forward(op.silu_mul(gate_up), None)
        op.add_(h, y)
    cache.lengths += 1
    return h


def _keys_values(
    block: Block, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: Cache, i: int, every: torch.Tensor
) -> torch.Tensor:
    op = kernels()
    x, _, _ = op.rms_norm(h, block.norm1, block.config.norm_eps)
    qkv, _ = block.qkv.forward(x, None)
    q, k, v = block.split(qkv)
    block.norm_heads(q, k)
    op.rotate_(q, cos, sin)
    op.rotate_(k, cos, sin)
    cache.k[i][every, cache.lengths], cache.v[i][every, cache.lengths] = k, v
    return q


def choose(logits: torch.Tensor, sampling: Sampling, keys: Sequence[int], position: int) -> torch.Tensor:
    """logits (B, V) → the next tokens (B,). Sampling draws one uniform number a row from (seed, prompt, position)."""
    if sampling.temperature <= 0:
        return torch.from_numpy(logits.float().numpy().argmax(-1))  # PyTorch's own takes three times as long
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    ordered, order = probabilities.sort(-1, descending=True)
    cumulative = ordered.cumsum(-1)
    if sampling.top_p < 1:
        ordered = torch.where(cumulative - ordered < sampling.top_p, ordered, 0.0)
        cumulative = ordered.cumsum(-1)
    uniform = torch.tensor([mix_key(key, position) / 2**32 for key in keys])
    place = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1).clamp_max(logits.shape[1] - 1)
    return order.gather(1, place[:, None])[:, 0]


@torch.inference_mode()
def generate(
    model: LoraModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Generated]:
    """Decode all prompts together and yield each as it ends (its `index` says which it is).

    Args:
        model: the decoder, with or without adapter.
        prompts: token ids of each, at least one.
        sampling: greedy or sampled, bounds and seed.
        stop_ids: tokens that end a row; they are not part of it.
        on_progress: called after each step with the number of tokens decoded so far.
    """
    started = time.monotonic()
    decoded = 0
    for group in group_by_prefix([Example((*prompt, 0), len(prompt)) for prompt in prompts]):
        cache, h = _prefill(model, prompts, group)
        live = list(group.indices)
        keys = [mix_key(sampling.seed, *prompts[i]) for i in live]
        written: dict[int, list[int]] = {i: [] for i in live}
        position = 0
        while live:
            tokens = choose(model.head_logits(h), sampling, keys, position)
            position += 1
            ids = tokens.tolist()
            rows = []
            for row, (i, token) in enumerate(zip(live, ids, strict=True)):
                ended = token in stop_ids
                if not ended:
                    written[i].append(token)
                    decoded += 1
                if ended or position >= sampling.max_new_tokens:
                    yield Generated(i, written.pop(i), ended, time.monotonic() - started)
                else:
                    rows.append(row)
            if on_progress:
                on_progress(decoded)
            if len(rows) < len(live):
                live, keys = [live[r] for r in rows], [keys[r] for r in rows]
                if not live:
                    break
                tokens = tokens[rows]
                cache.keep(torch.tensor(rows))
            h = _step(model, tokens, cache)
