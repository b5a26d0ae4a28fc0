"""A group of linears that share an input, with their adapters: forward and backward by hand.

    y = x·Wᵀ + b + s·(drop(x)·Aᵀ)·Bᵀ        A (r, in) and B (out, r) trained (see below), W and b frozen

`kinds` has the formula of each kind and what it trains, `dora` what a trained magnitude adds. The linears of a group
(q, k, v; gate, up) share one dropout mask, since they share the input; PEFT draws one for each. Statistically that is
the same regularization of each adapter, and a third of the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rescoldo.engine.dora import Magnitudes
from rescoldo.engine.kernels.ops import Dropout
from rescoldo.engine.kinds import MAGNITUDE, A, B
from rescoldo.engine.linear import Adapter, FrozenLinear, Member, Products
from rescoldo.engine.types import LoraConfig

# what a group's backward pass needs besides its input: drop(x)·Aᵀ; with magnitudes also its unscaled output
Kept = torch.Tensor | tuple[torch.Tensor | None, torch.Tensor] | None


@dataclass(frozen=True)
class GroupedLinear:
    """One linear of a group: its full name ("model.layers.0.self_attn.q_proj") and its rows in the group's output."""

    name: str
    start: int
    end: int


class LoraGroup:
    """Linears with one input. `parameters` is shared with the model: float32, trained in place; call `sync`
    afterwards."""

    def __init__(
        self,
        frozen: FrozenLinear,
        linears: Sequence[GroupedLinear],
        bias: torch.Tensor | None,
        lora: LoraConfig | None,
        parameters: dict[str, torch.Tensor],
    ) -> None:
        self.frozen, self.linears, self.bias, self.parameters, self.lora = frozen, list(linears), bias, parameters, lora
        self.adapted = [linear for linear in self.linears if f"{linear.name}.{A}" in parameters]
        self.enabled = True
        self._squared: torch.Tensor | None = None  # ‖W‖² by row, for magnitudes
        if lora and lora.magnitude and self.adapted:
            self._squared = frozen.squared_norms()
            for linear in self.adapted:  # initially the norms of the base model, because B is zero
                parameters[f"{linear.name}.{MAGNITUDE}"].copy_(self._squared[linear.start : linear.end].sqrt())
        self.sync()

    def sync(self) -> None:
        """Copy `parameters` into the products' own layout."""
        self.products: Products
        self.magnitudes: Magnitudes | None = None
        if not (self.enabled and self.adapted and self.lora):
            self.products = self.frozen.adapted(None, self.bias)
            return
        rank = max(self.lora.rank_of(linear.name) for linear in self.adapted)
        members = [self._member(linear, rank, self.lora) for linear in self.adapted]
        adapter = Adapter(members, rank, self.lora.trains(A))
        if self._squared is None:
            self.products = self.frozen.adapted(adapter, self.bias)
            return
        self.products = self.frozen.adapted(adapter, None)
        lengths = [self.parameters[f"{linear.name}.{MAGNITUDE}"] for linear in self.adapted]
        self.magnitudes = Magnitudes(self.frozen, members, lengths, self._squared, self.bias)

    def _member(self, linear: GroupedLinear, rank: int, lora: LoraConfig) -> Member:
        """An adapted linear, with its A and B zero-padded to the group's rank."""
        a, b = self.parameters[f"{linear.name}.{A}"], self.parameters[f"{linear.name}.{B}"]
        more = rank - len(a)
        if more:
            a, b = torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more))
        return Member(linear.start, linear.end, a, b, lora.scale_of(linear.name))

    def forward(self, x: torch.Tensor, mask: Dropout | None, bare: int = 0) -> tuple[torch.Tensor, Kept]:
        """x (T, in) → y (T, out), and what the backward pass needs in addition to x; the first `bare` rows without
        adapters."""
        assert not bare or self.magnitudes is None  # those change W's own part
        y, z = self.products.forward(x, mask, bare)
        return (y, z) if self.magnitudes is None else (self.magnitudes.forward(y), (z, y))

    def backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        kept: Kept,
        mask: Dropout | None,
        gradients: dict[str, torch.Tensor],
        want_input: bool = True,
    ) -> torch.Tensor | None:
        """Add the adapters' gradients to those tensors that `gradients` has (float32: LoraModel.trained) and return dx
        (T, in), None if not wanted."""
        if isinstance(kept, tuple):
            assert self.magnitudes is not None
            z, u = kept
            dy, lengths = self.magnitudes.backward(dy, u)
            for linear, dm in zip(self.adapted, lengths, strict=True):
                _add(gradients, f"{linear.name}.{MAGNITUDE}", dm)
        else:
            z = kept
        dx, found = self.products.backward(dy, x, z, mask, want_input)
        for linear, (da, db) in zip(self.adapted, found, strict=bool(found)):
            rank = len(self.parameters[f"{linear.name}.{A}"])
            _add(gradients, f"{linear.name}.{A}", None if da is None else da[:rank])
            _add(gradients, f"{linear.name}.{B}", db[:, :rank])
        return dx


def _add(gradients: dict[str, torch.Tensor], name: str, found: torch.Tensor | None) -> None:
    """Add to the gradient of a tensor, if the tensor is trained."""
    if name in gradients and found is not None:
        gradients[name] += found


def new_a(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A (rank, in) from PEFT's uniform distribution (Kaiming, a = sqrt 5), float32. B is initially zero."""
    bound = math.sqrt(1.0 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
