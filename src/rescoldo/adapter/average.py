"""The weighted average of several adapters of one base model. A way to do it is a row of METHODS.

`exact` is the average of what the adapters do to the weights, Σ w·s·B·A: their A and B side by side, so that the ranks
add up (PEFT's combination_type "cat"). `factors` averages A with A and B with B, and the rank stays; that is an average
only of adapters that have gone a part of the way together: epochs of one run, runs that went on from the same adapter.
PEFT's "linear" is not here: it scales A and B by the root of a weight each, which makes two equal adapters, with one
half each, twice as strong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from rescoldo.adapter.files import Adapter
from rescoldo.engine.kinds import KINDS, A, B
from rescoldo.engine.types import LoraConfig
from rescoldo.engine.weights import Tensors
from rescoldo.errors import RescoldoError

Averaged = tuple[LoraConfig, Tensors]


def average(adapters: Sequence[Adapter], weights: Sequence[float], method: str) -> Averaged:
    """The settings and weights of the average.

    Args:
        weights: of each adapter; they add up to 1.
        method: a key of METHODS.

    Raises:
        RescoldoError: the adapters are of different kinds, targets, layers or shapes, or their kind has no such
            average.
    """
    first = adapters[0]
    for other in adapters[1:]:
        _refuse_unlike(first, other)
    return METHODS[method](adapters, weights)


def _refuse_unlike(first: Adapter, other: Adapter) -> None:
    kinds = [f"{a.directory} is {KINDS[a.lora.kind].title}" for a in (first, other)]
    if first.lora.kind != other.lora.kind:
        raise RescoldoError(
            f"adapters of different kinds have no average: {', '.join(kinds)}", fix="merge adapters of one kind"
        )
    for what in ("targets", "layers"):
        values = [getattr(adapter.lora, what) for adapter in (first, other)]
        if values[0] != values[1]:
            shown = ["all" if value is None else ",".join(map(str, value)) for value in values]
            raise RescoldoError(
                f"the adapters have different {what}: {shown[0]} in {first.directory}, {shown[1]} in {other.directory}",
                fix=f"merge adapters with the same {what}",
            )
    sizes = [{name: _size(name, tensor) for name, tensor in a.parameters.items()} for a in (first, other)]
    for name in sorted(sizes[0].keys() | sizes[1].keys()):
        if sizes[0].get(name) != sizes[1].get(name):
            raise RescoldoError(
                f"the adapters are of models of different shapes: {name} is {sizes[0].get(name, 0)} wide in "
                f"{first.directory}, {sizes[1].get(name, 0)} in {other.directory}",
                fix="merge adapters of one base model",
            )


def _size(name: str, tensor: torch.Tensor) -> int:
    """The side of a tensor that the base model decides, not the rank."""
    return tensor.shape[1] if name.endswith(A) else tensor.shape[0]


def _exact(adapters: Sequence[Adapter], weights: Sequence[float]) -> Averaged:
    lora = adapters[0].lora
    if lora.magnitude:
        raise RescoldoError(
            f"{KINDS[lora.kind].title} has no exact average: its magnitudes are not added to the weights",
            where="--method",
            fix="--method factors, where the adapters are epochs of one run or went on from one adapter",
        )
    ranks = {name: sum(adapter.lora.rank_of(name) for adapter in adapters) for name in lora.targets}
    rank = max(ranks.values())
    others = {name: r for name, r in ranks.items() if r != rank}
    settings = LoraConfig(
        rank, float(rank), lora.dropout, lora.targets, ranks=others, alphas={n: float(r) for n, r in others.items()},
        layers=lora.layers,
    )  # fmt: skip
    merged: Tensors = {}
    for name in adapters[0].parameters:
        parts = [adapter.parameters[name] for adapter in adapters]
        if name.endswith(A):
            merged[name] = torch.cat(parts)
            continue
        module = name.removesuffix(f".{B}")
        scales = [w * adapter.lora.scale_of(module) for w, adapter in zip(weights, adapters, strict=True)]
        merged[name] = torch.cat([s * b for s, b in zip(scales, parts, strict=True)], dim=1)
    return settings, merged


def _factors(adapters: Sequence[Adapter], weights: Sequence[float]) -> Averaged:
    first = adapters[0]
    for other in adapters[1:]:
        for name in first.lora.targets:
            here, there = ((a.lora.rank_of(name), a.lora.alpha_of(name)) for a in (first, other))
            if here != there:
                raise RescoldoError(
                    f"{name} has rank {here[0]} and alpha {here[1]:g} in {first.directory}, rank {there[0]} and alpha "
                    f"{there[1]:g} in {other.directory}",
                    where="--method",
                    fix="--method exact, which takes any ranks",
                )
    merged = {
        name: torch.stack([w * a.parameters[name] for w, a in zip(weights, adapters, strict=True)]).sum(0)
        for name in first.parameters
    }
    return replace(first.lora), merged


METHODS: Mapping[str, Callable[[Sequence[Adapter], Sequence[float]], Averaged]] = {
    "exact": _exact,
    "factors": _factors,
}
