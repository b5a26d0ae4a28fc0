"""Forward and backward of one optimizer step, one micro-batch at a time, resumable between any two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rescoldo.engine.block import PrefixGrad, Rows
from rescoldo.engine.model import Kept, LoraModel, layer_of
from rescoldo.engine.prefix import PrefixGroup, group_by_prefix
from rescoldo.engine.types import Example

_POSITION_BITS = 18  # a row's identity: who it belongs to, then its position


class _Shared:
    """A group's prefix while its step lasts: the saved pass and the gradients collected for its keys and values."""

    def __init__(self, model: LoraModel, tokens: Sequence[int], owner: int, seed: tuple[int, int], beside: int) -> None:
        c, n = model.config, len(tokens)
        identity = torch.arange(n) + (owner << _POSITION_BITS)
        self.rows: Rows = model.rows((0, n), 0, identity, seed)
        self.keep: list[Kept] = []
        self.qkv = model.forward_prefix(torch.tensor(tokens), self.rows, self.keep, beside)
        shape = (c.n_layers, n, c.n_kv_heads, c.head_dim)
        self.dk, self.dv = torch.zeros(shape), torch.zeros(shape)

    def grad(self, layer: int) -> PrefixGrad:
        return PrefixGrad(self.dk[layer], self.dv[layer])


class GradientStep:
    """The gradient of the mean loss over all target tokens of `examples`, collected micro-batch by micro-batch.

    Examples that begin alike share that beginning: its forward pass is done once, each example's backward pass adds to
    the gradients of its keys and values, and `finish` goes back through it once. This is exact: the prefix does not see
    what comes after it. With dropout, the shared beginning has one mask for all examples of the step (each example
    its own where nothing is shared); masks are a function of seed, step, layer, module, example and position.

    A layer's gradients are ready behind the last backward pass through it: that of the shared beginnings, or, where
    nothing is shared, that of the last micro-batch.

    Args:
        model: weights and adapter; the adapter must not change until `finish`.
        examples: the step's examples, in order.
        step: the optimizer step's number, for dropout.
        seed: the run's seed.
        mine: which of the examples are computed here (default: all).
        on_ready: called with each layer's gradients by parameter once they are ready, the top layer first.
    """

    def __init__(
        self,
        model: LoraModel,
        examples: Sequence[Example],
        *,
        step: int,
        seed: int,
        mine: Sequence[int] | None = None,
        on_ready: Callable[[dict[str, torch.Tensor]], None] | None = None,
    ) -> None:
        self.model, self.examples, self.seed = model, list(examples), (seed, step)
        self.n_targets = sum(e.n_targets for e in self.examples)
        self.gradients = {name: torch.zeros_like(p) for name, p in model.parameters.items()}
        self.groups = group_by_prefix(self.examples, share=model.share_prefix)
        self._shared: dict[int, _Shared] = {}
        self._left = set(range(len(self.examples)) if mine is None else mine)  # examples without their backward pass
        self._on_ready, self._not_ready = on_ready, model.config.n_layers  # the layers below this one

    def _prefix(self, g: int) -> _Shared | None:
        group = self.groups[g]
        if not group.length:
            return None
        if g not in self._shared:
            owner = (1 << 13) - 1 - g
            tokens = self.examples[group.indices[0]].tokens[: group.length]
            longest = max(len(self.examples[i].tokens) for i in group.indices) - group.length
            self._shared[g] = _Shared(self.model, tokens, owner, self.seed, longest)
        return self._shared[g]

    def micro_batch(self, indices: Sequence[int]) -> float:
        """Forward and backward of these examples together; returns their summed loss in nats."""
        loss = 0.0
        for g, group in enumerate(self.groups):
            members = [i for i in indices if i in group.indices]
            if members:
                self._left.difference_update(members)
                loss += self._run(members, group, self._prefix(g))
        return loss

    def _run(self, members: list[int], group: PrefixGroup, shared: _Shared | None) -> float:
        model, p = self.model, group.length
        tokens, identity, at, targets, bounds = [], [], [], [], [0]
        for i in members:
            example, start = self.examples[i], bounds[-1]
            own = torch.tensor(example.tokens[p:-1])  # the last token predicts nothing
            tokens.append(own)
            identity.append(torch.arange(p, p + len(own)) + ((i + 1) << _POSITION_BITS))
            at.append(torch.arange(start + example.n_prompt - 1 - p, start + len(own)))
            targets.append(torch.tensor(example.tokens[example.n_prompt :]))
            bounds.append(start + len(own))
        rows = model.rows(bounds, p, torch.cat(identity), self.seed)
        prefix = shared.qkv if shared else None
        keep: list[Kept] = []
        h = model.forward(torch.cat(tokens), rows, prefix, keep)
        loss, dh = model.head_loss(h, torch.cat(at), torch.cat(targets), 1.0 / self.n_targets)
        assert dh is not None
        del h
        for i in reversed(range(model.config.n_layers)):
            block, saved = model.blocks[i], model.kept(i, keep, rows, prefix)
            own_prefix = prefix[i] if prefix else None
            collect = shared.grad(i) if shared else None
            block.backward(dh, saved, rows, own_prefix, collect, None, self.gradients, want_input=i > 0)
            if not self._left and not self._shared:
                self._ready(i)
        return loss

    def finish(self) -> dict[str, torch.Tensor]:
        """Go back through the shared prefixes; returns the step's gradient, float32, by parameter."""
        width = self.model.config.hidden_size
        passes = [(one, torch.zeros(len(one.rows.identity), width)) for _, one in sorted(self._shared.items())]
        for i in reversed(range(self.model.config.n_layers)):  # the outer loop: the top layers are ready early
            block = self.model.blocks[i]
            for shared, dh in passes:
                saved = self.model.kept(i, shared.keep, shared.rows, None, is_prefix=True)
                block.backward(dh, saved, shared.rows, None, None, shared.grad(i), self.gradients, want_input=i > 0)
            self._ready(i)
        self._shared.clear()
        return self.gradients

    def _ready(self, layer: int) -> None:
        """Nothing will be added to this layer's gradients any more: say so once."""
        if self._on_ready and layer < self._not_ready:
            self._on_ready({name: g for name, g in self.gradients.items() if layer_of(name) == layer})
        self._not_ready = min(layer, self._not_ready)

    def state(self) -> dict[str, torch.Tensor]:
        """What was collected so far; with the same examples, step, seed and weights it continues bit for bit."""
        state = {f"gradient.{name}": value for name, value in self.gradients.items()}
        for g, shared in self._shared.items():
            state |= {f"prefix.{g}.k": shared.dk, f"prefix.{g}.v": shared.dv}
        return state

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state()` of an interrupted step."""
        for name, gradient in self.gradients.items():
            gradient.copy_(state[f"gradient.{name}"])
        for key, value in state.items():
            kind, _, rest = key.partition(".")
            if kind == "prefix":
                number, part = rest.split(".")
                shared = self._prefix(int(number))
                assert shared is not None
                (shared.dk if part == "k" else shared.dv).copy_(value)
