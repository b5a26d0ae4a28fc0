"""Batched decoding: rows with a common prefix, which is computed once; rows join and leave between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

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
_SECOND = 2  # seeds the second draw of a row whose first draw its constraint does not allow
T = TypeVar("T")


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
        slots = (
            slots if rows <= slots and in_use > slots // 2 else max(rows, in_use)
        )  # also shrinks after rows have left
        capacity = max(capacity, (length + _GROWTH - 1) // _GROWTH * _GROWTH)
        for caches in (self.k, self.v):
            for i, old in enumerate(caches):
                new = torch.zeros(slots, capacity, *old.shape[2:], dtype=self.dtype)
                new[:in_use, : old.shape[1]] = old[:in_use]
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
            for caches in (self.k, self.v):
                for cache in caches:
                    cache[row] = cache[last]
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
    """One decoding step: a new query for each row in use, against the cache including its own key and value."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.every = cache, torch.arange(len(cache.lengths))
        self.bounds = range(len(self.every) + 1)

    def stops_at_keys(self, layer: int) -> bool:
        return False

    def start_state(self, layer: int) -> torch.Tensor | None:
        return self.cache.states[layer][: len(self.every)]

    def end_state(self, layer: int, states: torch.Tensor) -> None:
        self.cache.put_states(layer, 0, states)

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        at = self.every, self.cache.lengths
        self.cache.k[layer][at], self.cache.v[layer][at] = k, v

    def share(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        pass  # they are in the cache

    def shared(self, layer: int) -> KeysValues:
        return self.cache.k[layer], self.cache.v[layer]

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, span: Span
    ) -> tuple[torch.Tensor, torch.Tensor]:
        c, b = self.cache, len(self.every)
        pk, pv = c.prefix_k[layer], c.prefix_v[layer]
        own = c.k[layer][:b], c.v[layer][:b]
        mixed = kernels().attend_cached(q, pk, pv, *own, c.lengths + 1, span.window, span.scale, span.soft_cap)
        return mixed, torch.empty(0)

    def backward(self, *_: object) -> NoReturn:
        raise AssertionError("decoding has no backward pass")

    end_state_gradient = start_state_gradient = add_shared_gradient = keys_values_gradient = backward


def choose(logits: torch.Tensor, sampling: Sampling, keys: Sequence[int], position: int) -> torch.Tensor:
    """logits (B, V) → the next tokens (B,). Sampling draws one uniform number per row from (seed, prompt, position)."""
    if sampling.temperature <= 0:
        return torch.from_numpy(logits.float().numpy().argmax(-1))  # PyTorch's argmax takes three times as long
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

    All rows begin with the same `prefix` (possibly empty), whose keys and values are computed once.
    """

    @torch.inference_mode()
    def __init__(self, model: LoraModel, stop_ids: Collection[int], prefix: Sequence[int] = ()) -> None:
        self.model, self.stop_ids, self.prefix = model, frozenset(stop_ids), tuple(prefix)
        self._cache = Cache(model, len(self.prefix))
        self._rows: list[_Row] = []
        self._hidden: list[torch.Tensor] = []  # of each row's newest token, (D,) float32
        self._shared: SharedPrefix | None = None
        if self.prefix:
            self._shared = model.prefix(self.prefix)
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
        rows = model.rows(torch.arange(p, p + n))
        h = model.forward(tokens, rows, _Prefill(cache, row, n, self._shared))
        cache.lengths = torch.cat((cache.lengths, torch.tensor([n])))
        self._rows.append(_Row(key, sampling, mix_key(sampling.seed, *prompt), constraint))
        self._hidden.append(h[-1].clone())

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Choose the next token of each row and compute its hidden state; rows that end are removed."""
        if not self._rows:
            return []
        tokens = self._choose(self.model.head.logits(torch.stack(self._hidden)))
        steps: list[Step] = []
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            row.position += 1
            ended = token in self.stop_ids or bool(row.error)
            last = ended or row.position >= row.sampling.max_new_tokens
            if row.constraint and not last:
                row.constraint.accept(token)
            steps.append(Step(row.key, None if ended else token, last, row.error))
        left = [index for index, step in enumerate(steps) if step.last]
        kept = self._drop(left, list(range(len(steps))))
        if kept:
            self._hidden = list(self._decode(tokens[kept]))
        return steps

    def _decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B,), each row's newest, which are appended to the cache → the hidden state (B, D) float32."""
        cache = self._cache
        cache.reserve(len(tokens), int(cache.lengths.max()) + 1)
        h = self.model.forward(tokens, self.model.rows(cache.lengths + cache.prefix), _Decode(cache))
        cache.lengths += 1
        return h

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
                again = mix_key(
                    row.random, _SECOND
                )  # the first number is no longer uniform, given that its token was refused
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
    started = time.monotonic()
    decoded = 0
    for group in group_by_prefix([Example((*prompt, 0), len(prompt)) for prompt in prompts]):
        decoder = Decoder(model, stop_ids, prompts[group.indices[0]][: group.length])
        decoder.reserve(len(group.indices), max(len(prompts[i]) for i in group.indices) - group.length)
        for i in group.indices:
            decoder.admit(i, prompts[i], sampling, constrain() if constrain else None)
        written: dict[int, list[int]] = {i: [] for i in group.indices}
        while len(decoder):
            for step in decoder.step():
                if step.token is not None:
                    written[step.key].append(step.token)
                    decoded += 1
                if step.last:
                    ended, seconds = step.token is None and not step.error, time.monotonic() - started
                    yield Generated(step.key, written.pop(step.key), ended, seconds, step.error)
            if on_progress:
                on_progress(decoded)
