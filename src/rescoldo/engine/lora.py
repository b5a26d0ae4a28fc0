"""A group of linears that share an input, with their adapters: forward and backward by hand.

    y = x·Wᵀ + b + scale·(drop(x)·Aᵀ)·Bᵀ        A (r, in) and B (out, r) trained, W and b frozen

The linears of a group (q, k, v; gate, up) share one dropout mask, since they share the input; PEFT draws one for each.
Statistically that is the same regularization of each adapter, and a third of the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rescoldo.engine.kernels.ops import Dropout
from rescoldo.engine.linear import Adapter, FrozenLinear, Member, Products
from rescoldo.engine.types import LoraConfig


@dataclass(frozen=True)
class Place:
    """One linear of a group: its full name ("model.layers.0.self_attn.q_proj") and its rows in the group's output."""

    name: str
    start: int
    end: int


class LoraGroup:
    """Linears with one input. `parameters` is shared with the model: float32, trained in place; call `sync` after."""

    def __init__(
        self,
        frozen: FrozenLinear,
        places: Sequence[Place],
        bias: torch.Tensor | None,
        lora: LoraConfig | None,
        parameters: dict[str, torch.Tensor],
    ) -> None:
        self.frozen, self.places, self.bias, self.parameters, self.lora = frozen, list(places), bias, parameters, lora
        self.adapted = [place for place in self.places if f"{place.name}.lora_A" in parameters]
        self.enabled = True
        self.sync()

    def sync(self) -> None:
        """Take over `parameters` into the products' own copies."""
        adapter: Adapter | None = None
        if self.enabled and self.adapted and self.lora:
            members = [
                Member(p.start, p.end, self.parameters[f"{p.name}.lora_A"], self.parameters[f"{p.name}.lora_B"])
                for p in self.adapted
            ]
            adapter = Adapter(members, self.lora.rank, self.lora.scale)
        self.products: Products = self.frozen.adapted(adapter, self.bias)

    def forward(self, x: torch.Tensor, mask: Dropout | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x (T, in) → y (T, out) and what the backward pass needs beside x."""
        return self.products.forward(x, mask)

    def backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        z: torch.Tensor | None,
        mask: Dropout | None,
        gradients: dict[str, torch.Tensor],
        want_input: bool = True,
    ) -> torch.Tensor | None:
        """Add the adapters' gradients to `gradients` (float32) and return dx (T, in), None if not wanted."""
        dx, found = self.products.backward(dy, x, z, mask, want_input)
        for place, (da, db) in zip(self.adapted, found, strict=bool(found)):
            gradients[f"{place.name}.lora_A"] += da
            gradients[f"{place.name}.lora_B"] += db
        return dx


def new_adapter(shape: tuple[int, int], rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) from the uniform distribution PEFT uses (Kaiming, a = sqrt 5) and B (out, rank) zero, float32."""
    bound = math.sqrt(1.0 / shape[1])
    a = torch.empty(rank, shape[1]).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(shape[0], rank)
