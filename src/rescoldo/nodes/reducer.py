"""The all-reduce of a step's gradients, bucket by bucket, while the last backward pass is running."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.distributed as dist

from rescoldo.engine.model import layer_of
from rescoldo.engine.weights import Tensors
from rescoldo.nodes.group import flat, unflatten

BUCKET_BYTES = 1 << 20  # smaller messages are dominated by latency; much larger ones would start late


def buckets(parameters: Tensors) -> list[tuple[str, ...]]:
    """The parameters in the order in which their gradients become ready, top layer first: whole layers are combined
    until they have BUCKET_BYTES in float32. It depends only on names and shapes, so all processes have the same
    buckets."""
    found: list[tuple[str, ...]] = []
    names: list[str] = []
    ordered = sorted(parameters, key=lambda name: (-layer_of(name), name))
    for _, layer in itertools.groupby(ordered, layer_of):
        names += layer
        if 4 * sum(parameters[name].numel() for name in names) >= BUCKET_BYTES:
            found.append(tuple(names))
            names = []
    return [*found, tuple(names)] if names else found


class Reducer:
    """All-reduces one step's gradients. Every process starts the sums in the same order, that of `buckets`, and gets
    the same bits, because each piece is summed by one of them."""

    def __init__(self, parameters: Tensors) -> None:
        self._buckets = buckets(parameters)
        self._gradients: dict[str, torch.Tensor] = {}
        self._begun: list[tuple[torch.Tensor, dist.Work]] = []

    def ready(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Mark gradients as final, and start to sum the buckets that are complete."""
        self._gradients.update(gradients)
        while len(self._begun) < len(self._buckets):
            names = self._buckets[len(self._begun)]
            if not self._gradients.keys() >= set(names):
                return
            vector = flat({name: self._gradients[name] for name in names})
            self._begun.append((vector, dist.all_reduce(vector, async_op=True)))

    def wait(self) -> None:
        """Wait for all sums; then the gradients are the sums."""
        for names, (vector, work) in zip(self._buckets, self._begun, strict=True):
            work.wait()
            unflatten(vector, {name: self._gradients[name] for name in names})
