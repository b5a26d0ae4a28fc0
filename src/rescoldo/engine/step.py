"""Forward and backward of one optimizer step, one micro-batch at a time, resumable between any two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from rescoldo.engine.attend import PackedAttention, PrefixAttention, PrefixGrad
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.model import LoraModel, layer_of, log_probabilities
from rescoldo.engine.objective import CROSS_ENTROPY, Objective, targets_of
from rescoldo.engine.prefix import PrefixGroup, group_by_prefix
from rescoldo.engine.types import Example

_POSITION_BITS = 18  # a row's identity is its owner's number, followed by its position


class _Shared:
    """A group's prefix during its step: the saved pass, and the accumulated gradients of its keys and values."""

    def __init__(
        self, model: LoraModel, tokens: Sequence[int], owner: int, seed: tuple[int, int], other_rows: int
    ) -> None:
        c, positions = model.config, torch.arange(len(tokens))
        self.rows = model.rows(positions, positions + (owner << _POSITION_BITS), seed)
        self.attend = PrefixAttention(len(tokens), c.kv_layers[-1])
        self.saved = model.saved_activations(self.rows, self.attend, other_rows)
        model.forward(torch.tensor(tokens), self.rows, self.attend, self.saved)
        self.grad = self.attend.received = PrefixGrad.zeros(c, len(tokens))


class GradientStep:
    """The gradient of the mean loss over all targets of `examples`, accumulated micro-batch by micro-batch.

    Examples with a common prefix share it: its forward pass is done once, each example's backward pass adds to the
    gradients of its keys and values, and `finish` runs its backward pass once. This is exact, because the prefix does
    not depend on the tokens after it. With dropout, the shared prefix has one mask for all examples of the step
    (without sharing, one for each example); masks are a function of seed, step, layer, module, example and position.

    A layer's gradients are final after the last backward pass through it: that of the shared prefixes or, if nothing is
    shared, that of the last micro-batch.

    Args:
        model: weights and adapter; the adapter must not change until `finish`.
        examples: the step's examples, in order.
        step: the optimizer step's number, for dropout.
        seed: the run's seed.
        mine: the indices of the examples that are computed here (default: all).
        objective: the loss; default: cross-entropy with each target's weight.
        on_ready: called with each layer's gradients by parameter as soon as they are final, the top layer first.
    """

    def __init__(
        self,
        model: LoraModel,
        examples: Sequence[Example],
        *,
        step: int,
        seed: int,
        mine: Sequence[int] | None = None,
        objective: Objective = CROSS_ENTROPY,
        on_ready: Callable[[dict[str, torch.Tensor]], None] | None = None,
    ) -> None:
        self.model, self.seed = model, (seed, step)
        self.total = objective.total(examples)
        self.objective = objective.begin(partial(log_probabilities, model), examples) if objective.begin else objective
        self.examples: list[Example] = []  # the sequences that are computed
        self._of: list[range] = []  # those of each example
        for example in examples:
            self._of.append(range(len(self.examples), len(self.examples) + len(example.passes)))
            self.examples += example.passes
        self.gradients = {name: torch.zeros_like(p) for name, p in model.trained.items()}
        self.groups = group_by_prefix(self.examples, share=model.share_prefix)
        self._shared: dict[int, _Shared] = {}
        self._left = set(self._sequences(range(len(self._of)) if mine is None else mine))  # backward passes still to do
        self._on_ready, self._not_ready = on_ready, model.config.n_layers  # number of layers not yet final

    def _sequences(self, indices: Sequence[int]) -> list[int]:
        return [sequence for i in indices for sequence in self._of[i]]

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
        """Forward and backward pass of these examples together; returns their summed loss in nats."""
        loss = 0.0
        sequences = self._sequences(indices)
        for g, group in enumerate(self.groups):
            members = [i for i in sequences if i in group.indices]
            if members:
                self._left.difference_update(members)
                loss += self._run(members, group, self._prefix(g))
        return loss

    def _run(self, members: list[int], group: PrefixGroup, shared: _Shared | None) -> float:
        model, p = self.model, group.length
        tokens, positions, identity, bounds, starts = [], [], [], [0], []
        for i in members:
            own = torch.tensor(self.examples[i].tokens[p:-1])  # the last token has no target
            at = torch.arange(p, p + len(own))
            starts.append(bounds[-1])
            tokens.append(own)
            identity.append(at + ((i + 1) << _POSITION_BITS))
            for first, end in self.examples[i].spans(p):
                positions.append(torch.arange(first, end) if first == p else torch.arange(end - first))
                bounds.append(bounds[-1] + end - first)
        rows = model.rows(torch.cat(positions), torch.cat(identity), self.seed)
        layout = Layout(tuple(bounds), p)
        attend = PackedAttention(layout, shared.attend.found, shared.grad) if shared else PackedAttention(layout)
        saved = model.saved_activations(rows, attend)
        h = model.forward(torch.cat(tokens), rows, attend, saved)
        targets = targets_of([self.examples[i] for i in members], starts, p)
        loss, dh = self.objective.loss(model.head, h, targets, 1.0 / self.total)
        del h
        lowest = model.first_layer
        for i in reversed(range(lowest, model.config.n_layers)):
            model.layers[i].backward(dh, saved.pop(i), rows, attend, self.gradients, want_input=i > lowest)
            if not self._left and not self._shared:
                self._ready(i)
        return loss

    def finish(self) -> dict[str, torch.Tensor]:
        """Run the backward pass of the shared prefixes; returns the step's gradient, float32, by parameter."""
        width = self.model.config.hidden_size
        passes = [(one, torch.zeros(len(one.rows.identity), width)) for _, one in sorted(self._shared.items())]
        lowest = self.model.first_layer
        for i in reversed(range(lowest, self.model.config.n_layers)):  # layers outermost: the top ones are final early
            layer = self.model.layers[i]
            for one, dh in passes if i <= self.model.config.kv_layers[-1] else ():
                layer.backward(dh, one.saved.pop(i), one.rows, one.attend, self.gradients, want_input=i > lowest)
            self._ready(i)
        self._shared.clear()
        return self.gradients

    def _ready(self, layer: int) -> None:
        """Report once that this layer's gradients are final."""
        if self._on_ready and layer < self._not_ready:
            self._on_ready({name: g for name, g in self.gradients.items() if layer_of(name) == layer})
        self._not_ready = min(layer, self._not_ready)

    def state(self) -> dict[str, torch.Tensor]:
        """The gradients so far; with the same examples, step, seed and weights the step continues with the same
        bits."""
        state = {f"gradient.{name}": value for name, value in self.gradients.items()}
        for g, shared in self._shared.items():
            state |= {f"prefix.{g}.k": shared.grad.k, f"prefix.{g}.v": shared.grad.v}
            state |= {f"prefix.{g}.state.{layer}": value for layer, value in shared.grad.states.items()}
        return state

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from the `state()` of an interrupted step."""
        for name, gradient in self.gradients.items():
            gradient.copy_(state[f"gradient.{name}"])
        for key, value in state.items():
            kind, _, rest = key.partition(".")
            if kind == "prefix":
                number, part, *layer = rest.split(".")
                shared = self._prefix(int(number))
                assert shared is not None
                if layer:
                    shared.grad.states[int(layer[0])] = value
                else:
                    {"k": shared.grad.k, "v": shared.grad.v}[part].copy_(value.flatten())
