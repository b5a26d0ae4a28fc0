"""The sum of a step's gradients on all machines, bucket by bucket, while the last backward pass is running."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.distributed as dist

from rescoldo.engine.model import layer_of
from rescoldo.engine.weights import Tensors
from rescoldo.nodes.group import flat, unflatten

BUCKET_BYTES = 1 << 20  # below that a message's latency counts; far above, the first one would begin late


def buckets(parameters: Tensors) -> list[tuple[str, ...]]:
    """The parameters in the order in which their gradients become ready, top layer first: whole layers together until
    they are BUCKET_BYTES in float32. A function of names and shapes alone, so every process has the same."""
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
    """Sums one step's gradients. Every process starts the same sums in the same order, that of `buckets`, and ends with
    the same bits: each piece is summed by one of them."""

    def __init__(self, parameters: Tensors) -> None:
        self._buckets = buckets(parameters)
        self._gradients: dict[str, torch.Tensor] = {}
        self._begun: list[tuple[torch.Tensor, dist.Work]] = []

    def ready(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """These will not change any more: start to sum what is complete."""
        self._gradients.update(gradients)
        while len(self._begun) < len(self._buckets):
            names = self._buckets[len(self._begun)]
            if not self._gradients.keys() >= set(names):
                return
            vector = flat({name: self._gradients[name] for name in names})
            self._begun.append((vector, dist.all_reduce(vector, async_op=True)))

    def wait(self) -> None:
        """Until all is there: the gradients are then the sums."""
        for names, (vector, work) in zip(self._buckets, self._begun, strict=True):
            work.wait()
            unflatten(vector, {name: self._gradients[name] for name in names})
