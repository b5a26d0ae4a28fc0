"""Batched decoding: rows with a common prefix, which is computed once; rows join and leave between two steps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
import torch

from rescoldo.engine.attend import KeysValues, PackedAttention, SharedPrefix, Span
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.kernels.ops import mix_key
from rescoldo.engine.model import LoraModel
from rescoldo.engine.prefix import group_by_prefix
from rescoldo.engine.types import Constraint, Example, Generated, Sampling

_GROWTH = 128  # tokens by which a cache grows
_SLOTS = 4  # rows by which it grows
_AHEAD = 1024  # new tokens that there is room for from the beginning: growing copies everything
_SECOND = 2  # seeds the second draw of a row whose first draw its constraint does not allow
T = TypeVar("T")


def _zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """torch.zeros whose memory is only allocated by the system when it is written to, as numpy's is."""
    if 0 in shape:  # a layer that attends to another one's keys: an empty array cannot be viewed as another dtype
        return torch.zeros(tuple(shape), dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(tuple(shape))


class Cache:
    """Keys and values of a batch: the prefix's once, followed by each row's own; and recurrent states.

    Attributes:
        prefix_k, prefix_v: a layer's (P, K, d) each, or None.
        states: of a layer with a recurrent state, (slots, …).
        k, v: a layer's (slots, capacity, K, d) each, with K = 0 if it attends to another layer's; the rows in use come
            first.
        lengths: (B,) int64, own tokens of each row in use.
    """

    def __init__(self, model: LoraModel, prefix: int) -> None:
        self.config, self.dtype, self.prefix = model.config, model.dtype, prefix
        self.prefix_k: list[torch.Tensor | None] = [None] * self.config.n_layers
        self.prefix_v: list[torch.Tensor | None] = [None] * self.config.n_layers
        self.lengths = torch.zeros(0, dtype=torch.int64)
        self._empty()

    def _empty(self) -> None:
        self.states: dict[int, torch.Tensor] = {}
        self.k, self.v = self._nothing(), self._nothing()

    def _nothing(self) -> list[torch.Tensor]:
        c = self.config
        heads = [c.n_kv_heads if c.kv_source(i) == i else 0 for i in range(c.n_layers)]
        return [torch.empty(0, 0, heads[i], c.head_size(i), dtype=self.dtype) for i in range(c.n_layers)]

    @property
    def slots(self) -> int:
        """The number of allocated rows."""
        return self.k[0].shape[0]

    def reserve(self, rows: int, length: int) -> None:
        """Allocate for `rows` rows with `length` tokens of their own."""
        slots, capacity = self.k[0].shape[:2]
        if rows <= slots and length <= capacity:
            return
        in_use = len(self.lengths)
        # also shrinks after rows have left
        slots = slots if rows <= slots and in_use > slots // 2 else max(rows, in_use)
        capacity = max(capacity, (length + _GROWTH - 1) // _GROWTH * _GROWTH)
        used = int(self.lengths.max()) if in_use else 0
        for caches in (self.k, self.v):
            for i, old in enumerate(caches):
                new = _zeros((slots, capacity, *old.shape[2:]), self.dtype)
                new[:in_use, :used] = old[:in_use, :used]
                caches[i] = new
        for layer, old in self.states.items():
            self.states[layer] = torch.zeros(slots, *old.shape[1:], dtype=old.dtype)
            self.states[layer][:in_use] = old[:in_use]

    def put_states(self, layer: int, first: int, states: torch.Tensor) -> None:
        """Store the states (n, …) of the rows from `first` on."""
        if layer not in self.states:
            self.states[layer] = torch.zeros(self.slots, *states.shape[1:], dtype=states.dtype)
        self.states[layer][first : first + len(states)] = states

    def drop(self, row: int) -> None:
        """Remove one row; the last one is moved to its index."""
        last = len(self.lengths) - 1
        if row != last:
            used = int(self.lengths[last])
            for caches in (self.k, self.v):
                for cache in caches:
                    cache[row, :used] = cache[last, :used]
            for states in self.states.values():
                states[row] = states[last]
            self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last].clone()
        if not last:
            self._empty()


class _Prefill(PackedAttention):
    """The pass over a prompt after the prefix; its keys and values go into row `row` of the cache."""

    def __init__(self, cache: Cache, row: int, length: int, prefix: SharedPrefix | None) -> None:
        super().__init__(Layout((0, length), cache.prefix), prefix)
        self.cache, self.row, self.length = cache, row, length

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        self.cache.k[layer][self.row, : self.length], self.cache.v[layer][self.row, : self.length] = k, v

    def end_state(self, layer: int, states: torch.Tensor) -> None:
        self.cache.put_states(layer, self.row, states)


class _Decode:
    """One decoding step: a new query for each row in use against its cache including its own key and value. The
    rows of several caches follow each other, cache by cache."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.parts: list[tuple[Cache, slice]] = []
        end = 0
        for cache in caches:
            start, end = end, end + len(cache.lengths)
            self.parts.append((cache, slice(start, end)))
        self.bounds = range(end + 1)

    def stops_at_keys(self, layer: int) -> bool:
        return False

    def start_state(self, layer: int) -> torch.Tensor | None:
        return torch.cat([cache.states[layer][: len(cache.lengths)] for cache, _ in self.parts])

    def end_state(self, layer: int, states: torch.Tensor) -> None:
        for cache, rows in self.parts:
            cache.put_states(layer, 0, states[rows])

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        for cache, rows in self.parts:
            at = torch.arange(len(cache.lengths)), cache.lengths
            cache.k[layer][at], cache.v[layer][at] = k[rows], v[rows]

    def share(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        pass  # they are in the cache

    def shared(self, layer: int) -> KeysValues:
        return self.parts[0][0].k[layer], self.parts[0][0].v[layer]  # `forward` takes the caches' own

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = []
        for c, rows in self.parts:
            b = len(c.lengths)
            pk, pv = c.prefix_k[layer], c.prefix_v[layer]
            k, v = c.k[layer][:b], c.v[layer][:b]
            part = kernels().attend_cached(q[rows], pk, pv, k, v, c.lengths + 1, span.window, span.scale, span.soft_cap)
            mixed.append(part)
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)), torch.empty(0)

    def backward(self, *_: object) -> NoReturn:
        raise AssertionError("decoding has no backward pass")

    end_state_gradient = start_state_gradient = add_shared_gradient = keys_values_gradient = backward


def choose(logits: torch.Tensor, sampling: Sampling, keys: Sequence[int], position: int) -> torch.Tensor:
    """logits (B, V) → the next tokens (B,). Sampling draws one uniform number per row from (seed, prompt, position)."""
    if sampling.temperature <= 0:
        return _largest(logits)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    ordered, order = probabilities.sort(-1, descending=True)
    cumulative = ordered.cumsum(-1)
    if sampling.top_p < 1:
        ordered = torch.where(cumulative - ordered < sampling.top_p, ordered, 0.0)
        cumulative = ordered.cumsum(-1)
    uniform = torch.tensor([mix_key(key, position) / 2**32 for key in keys])
    place = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1)
    place = place.minimum((ordered > 0).sum(-1) - 1)  # float32 rounds the largest uniform numbers to 1
    return order.gather(1, place[:, None])[:, 0]


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """logits (B, V) → the place of each row's largest, the first of them (B,); by numpy, which is three times as fast
    as PyTorch, and ten times where it may compare whole numbers: the bits of bf16 above zero are in its order."""
    if logits.dtype == torch.bfloat16:
        bits = logits.view(torch.int16).numpy()
        places = bits.argmax(-1)
        if (np.take_along_axis(bits, places[:, None], -1) > 0).all():
            return torch.from_numpy(places)
    return torch.from_numpy(logits.float().numpy().argmax(-1))


@dataclass
class _Row:
    """One row of a Decoder."""

    key: int  # the caller's id for it
    sampling: Sampling
    random: int  # seed of its draws
    constraint: Constraint | None = None
    position: int = 0  # tokens decoded
    error: str = ""  # why its constraint does not allow any token


@dataclass(frozen=True)
class Step:
    """The result of one step for one row: the new `token`, or None for a stop token; `last`: the row has ended, without
    a token if its constraint failed with `error`."""

    key: int
    token: int | None
    last: bool
    error: str = ""


def _swap_out(items: list[T], index: int) -> None:
    """Remove an item; the last one is moved to its index."""
    items[index] = items[-1]
    items.pop()


class Decoder:
    """Rows that are decoded together, one token per step. They may be admitted and cancelled between any two steps.

    All rows begin with the same `prefix` (possibly empty), whose keys and values are computed once. Several
    decoders of one model take a step together with `step_together`.

    Args:
        adapter: whether the model's adapter is used; without, the rows are the base model's.
    """

    @torch.inference_mode()
    def __init__(
        self, model: LoraModel, stop_ids: Collection[int], prefix: Sequence[int] = (), *, adapter: bool = True
    ) -> None:
        self.model, self.stop_ids, self.prefix, self.adapter = model, frozenset(stop_ids), tuple(prefix), adapter
        self._cache = Cache(model, len(self.prefix))
        self._rows: list[_Row] = []
        self._hidden: list[torch.Tensor] = []  # of each row's newest token, (D,) float32
        self._shared: SharedPrefix | None = None
        if self.prefix:
            self._shared = model.prefix(self.prefix, adapter=adapter)
            for i, (k, v) in self._shared.keys_values.items():
                self._cache.prefix_k[i], self._cache.prefix_v[i] = k.contiguous(), v.contiguous()

    def __len__(self) -> int:
        """The number of rows being decoded."""
        return len(self._rows)

    def reserve(self, rows: int, length: int) -> None:
        """Allocate for `rows` rows with `length` tokens after the prefix."""
        self._cache.reserve(rows, length)

    @torch.inference_mode()
    def admit(self, key: int, prompt: Sequence[int], sampling: Sampling, constraint: Constraint | None = None) -> None:
        """Prefill a prompt (token ids, at least one more than the prefix that it begins with) and add it as a row.

        Args:
            constraint: which tokens may be chosen; an instance for this row alone.
        """
        p, model, cache = len(self.prefix), self.model, self._cache
        assert len(prompt) > p
        assert tuple(prompt[:p]) == self.prefix
        tokens = torch.tensor(prompt[p:])
        row, n = len(self._rows), len(tokens)
        cache.reserve(row + 1 if row < cache.slots else row + _SLOTS, n)
        rows = model.rows(torch.arange(p, p + n), bare=0 if self.adapter else n)
        h = model.forward(tokens, rows, _Prefill(cache, row, n, self._shared))
        cache.lengths = torch.cat((cache.lengths, torch.tensor([n])))
        self._rows.append(_Row(key, sampling, mix_key(sampling.seed, *prompt), constraint))
        self._hidden.append(h[-1].clone())

    def step(self) -> list[Step]:
        """Choose the next token of each row and compute its hidden state; rows that end are removed."""
        return step_together([self])[0]

    def _take(self, logits: torch.Tensor) -> tuple[list[Step], torch.Tensor]:
        """logits (B, V) of all rows → what the step does to them, and the tokens (rows that are left,) to compute."""
        tokens = self._choose(logits)
        steps: list[Step] = []
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            row.position += 1
            ended = token in self.stop_ids or bool(row.error)
            last = ended or row.position >= row.sampling.max_new_tokens
            if row.constraint and not last:
                row.constraint.accept(token)
            steps.append(Step(row.key, None if ended else token, last, row.error))
        left = [index for index, step in enumerate(steps) if step.last]
        return steps, tokens[self._drop(left, list(range(len(steps))))]

    @torch.inference_mode()
    def cancel(self, keys: Collection[int]) -> None:
        """Remove rows; unknown keys are ignored."""
        self._drop([index for index, row in enumerate(self._rows) if row.key in keys], list(range(len(self._rows))))

    def _drop(self, indices: Sequence[int], order: list[int]) -> list[int]:
        """Remove rows by index, moving the last ones to their indices; `order` (a list with an item per row) is changed
        in the same way and returned."""
        for index in sorted(indices, reverse=True):
            self._cache.drop(index)
            _swap_out(self._rows, index)
            _swap_out(self._hidden, index)
            _swap_out(order, index)
        return order

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (B, V), which constraints modify, → tokens (B,). Rows with the same sampling and position are chosen
        together.

        A mask costs as much as many checks of a single token, and most tokens are allowed. So every row first chooses
        freely, and only if its constraint does not allow the token, the logits are masked and it chooses again. For
        sampling this gives the same distribution as masking first (with top_p = 1): if the allowed tokens have the
        total probability A, a token with probability p is chosen with p + (1 - A) p / A = p / A. With top_p < 1 each of
        the two choices has its own nucleus.
        """
        tokens = self._draw(logits)
        for index, row in enumerate(self._rows):
            if row.constraint and not row.constraint.allows(int(tokens[index])):
                line = logits[index : index + 1]
                row.error = row.constraint.mask_(line[0])
                # another number: given that its token was refused, the first is not uniform any more
                again = mix_key(row.random, _SECOND)
                tokens[index] = choose(line, row.sampling, [again], row.position)[0]
        return tokens

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (B, V) → tokens (B,)."""
        alike: dict[tuple[float, float, int], list[int]] = {}
        for index, row in enumerate(self._rows):
            greedy = row.sampling.temperature <= 0
            kind = (0.0, 1.0, 0) if greedy else (row.sampling.temperature, row.sampling.top_p, row.position)
            alike.setdefault(kind, []).append(index)
        if len(alike) == 1:
            first = self._rows[0]
            return choose(logits, first.sampling, [row.random for row in self._rows], first.position)
        tokens = torch.empty(len(self._rows), dtype=torch.int64)
        for indices in alike.values():
            rows = [self._rows[index] for index in indices]
            tokens[indices] = choose(logits[indices], rows[0].sampling, [r.random for r in rows], rows[0].position)
        return tokens


@torch.inference_mode()
def step_together(decoders: Sequence[Decoder]) -> list[list[Step]]:
    """A step of several decoders of one model, whose weights are read once for all of them: what each did to its rows.

    A row's tokens do not depend on the others.
    """
    busy = [decoder for decoder in decoders if len(decoder)]
    if not busy:
        return [[] for _ in decoders]
    model = busy[0].model
    hidden = torch.stack([h for decoder in busy for h in decoder._hidden])
    logits = model.head.logits(hidden).split([len(decoder) for decoder in busy])
    taken = {id(decoder): decoder._take(part) for decoder, part in zip(busy, logits, strict=True)}
    going_on = sorted((decoder for decoder in busy if len(decoder)), key=lambda decoder: decoder.adapter)
    if going_on:
        caches = [decoder._cache for decoder in going_on]
        for cache in caches:
            cache.reserve(len(cache.lengths), int(cache.lengths.max()) + 1)
        bare = sum(len(decoder) for decoder in going_on if not decoder.adapter)
        rows = model.rows(torch.cat([cache.lengths + cache.prefix for cache in caches]), bare=bare)
        tokens = torch.cat([taken[id(decoder)][1] for decoder in going_on])
        h = model.forward(tokens, rows, _Decode(caches))
        for decoder, part in zip(going_on, h.split([len(decoder) for decoder in going_on]), strict=True):
            decoder._cache.lengths += 1
            decoder._hidden = list(part)
    return [taken[id(decoder)][0] if id(decoder) in taken else [] for decoder in decoders]


@dataclass(frozen=True)
class Batch:
    """Prompts (token ids of each, at least one) that are answered in one way.

    Attributes:
        adapter: with the model's adapter; without, by the base model.
        constrain: makes the constraint of a new row.
    """

    prompts: Sequence[Sequence[int]]
    adapter: bool = True
    constrain: Callable[[], Constraint] | None = None


def cache_bytes(model: LoraModel, batch: Batch, new_tokens: int) -> int:
    """What the keys and values of a batch take when each row has got that many tokens, at most."""
    each = 2 * model.config.kv_width * model.dtype.itemsize
    groups = group_by_prefix([Example((*prompt, 0), len(prompt)) for prompt in batch.prompts])
    own = sum(len(batch.prompts[i]) - group.length + new_tokens for group in groups for i in group.indices)
    return each * (own + sum(group.length for group in groups))


def generate(
    model: LoraModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    on_progress: Callable[[int], None] | None = None,
    constrain: Callable[[], Constraint] | None = None,
) -> Iterator[Generated]:
    """Decode all prompts together, and yield each as it ends (its `index` is the prompt's).

    Args:
        model: the decoder, with or without adapter.
        prompts: token ids of each, at least one.
        sampling: greedy or sampled, limits and seed.
        stop_ids: tokens that end a row; they are not part of it.
        on_progress: called after each step with the number of tokens decoded so far.
        constrain: makes the constraint of a new row.
    """
    batch = Batch(prompts, constrain=constrain)
    for _, row in generate_together(model, [batch], sampling, stop_ids, on_progress):
        yield row


def generate_together(
    model: LoraModel,
    batches: Sequence[Batch],
    sampling: Sampling,
    stop_ids: frozenset[int],
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Generated]]:
    """As `generate`, of several batches whose rows take their steps together; yields (batch, row).

    The rows are those that each batch gets alone: reading the weights, which is most of a step of few rows, is shared.
    """
    started = time.monotonic()
    decoded = 0
    groups = [group_by_prefix([Example((*prompt, 0), len(prompt)) for prompt in one.prompts]) for one in batches]
    for together in itertools.zip_longest(*groups):
        decoders: list[Decoder] = []
        places: list[int] = []
        for place, (batch, group) in enumerate(zip(batches, together, strict=True)):
            if group is None:
                continue
            prompts, p = batch.prompts, group.length
            decoder = Decoder(model, stop_ids, prompts[group.indices[0]][:p], adapter=batch.adapter)
            longest = max(len(prompts[i]) for i in group.indices) - p
            decoder.reserve(len(group.indices), longest + min(sampling.max_new_tokens, _AHEAD))
            for i in group.indices:
                decoder.admit(i, prompts[i], sampling, batch.constrain() if batch.constrain else None)
            decoders.append(decoder)
            places.append(place)
        written: dict[tuple[int, int], list[int]] = {}
        while any(map(len, decoders)):
            for place, steps in zip(places, step_together(decoders), strict=True):
                for step in steps:
                    row = written.setdefault((place, step.key), [])
                    if step.token is not None:
                        row.append(step.token)
                        decoded += 1
                    if step.last:
                        del written[place, step.key]
                        ended, seconds = step.token is None and not step.error, time.monotonic() - started
                        yield place, Generated(step.key, row, ended, seconds, step.error)
            if on_progress:
                on_progress(decoded)
