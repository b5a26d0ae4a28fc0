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

from rescoldo.engine.dispatch import kernels
from rescoldo.engine.linear import FrozenLinear
from rescoldo.engine.ops import Dropout
from rescoldo.engine.types import LoraConfig


@dataclass(frozen=True)
class Member:
    """One linear of a group: its full name ("model.layers.0.self_attn.q_proj") and its rows in the group's output."""

    name: str
    start: int
    end: int


class LoraGroup:
    """Linears with one input. `parameters` is shared with the model: float32, trained in place; call `sync` after."""

    def __init__(
        self,
        frozen: FrozenLinear,
        members: Sequence[Member],
        bias: torch.Tensor | None,
        lora: LoraConfig | None,
        parameters: dict[str, torch.Tensor],
    ) -> None:
        self.frozen, self.members, self.bias, self.parameters = frozen, list(members), bias, parameters
        self.adapted = [m for m in self.members if f"{m.name}.lora_A" in parameters]
        self.scale = lora.scale if lora else 0.0
        self.rank = lora.rank if lora else 0
        self.enabled = True
        self.sync()

    def sync(self) -> None:
        """Take over `parameters` into the working copies: A of all members stacked, B block by block."""
        r, dtype = self.rank, self.frozen.dtype
        self.a: torch.Tensor | None = None  # (R, in), R = r · adapted members
        side = self.frozen.side_weight
        apart = 0 if side is None else side.shape[1]
        total = r * len(self.adapted) if self.enabled else 0
        if total:
            self.a = torch.cat([self.parameters[f"{m.name}.lora_A"] for m in self.adapted]).to(dtype)
        self.side: torch.Tensor | None = None  # (out, R + n): scale·B block-diagonal, then the columns kept apart
        if total or apart:
            self.side = torch.zeros(self.frozen.out_features, total + apart, dtype=dtype)
            for i, m in enumerate(self.adapted if total else []):
                self.side[m.start : m.end, i * r : (i + 1) * r] = self.scale * self.parameters[f"{m.name}.lora_B"]
            if side is not None:
                self.side[:, total:] = side
        self.total = total

    def forward(self, x: torch.Tensor, mask: Dropout | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x (T, in) → y (T, out) and z = drop(x)·Aᵀ (T, R), which the backward pass needs."""
        z, side = None, None
        if self.a is not None:
            z = (kernels().dropout(x, mask) if mask else x) @ self.a.T
        if self.side is not None:
            apart = self.frozen.side_input(x)
            left = z if apart is None else apart if z is None else torch.cat((z, apart), dim=1)
            assert left is not None
            side = left @ self.side.T
        y = self.frozen.forward(x, side)
        if self.bias is not None:
            y += self.bias
        return y, z

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
        dz, dapart = None, None
        if self.side is not None and (self.total or want_input):
            both = dy @ self.side  # (T, R + n)
            dz = both[:, : self.total].contiguous() if self.total else None
            dapart = both[:, self.total :] if both.shape[1] > self.total else None
        if dz is not None and z is not None:
            r = self.rank
            da = dz.T @ (kernels().dropout(x, mask) if mask else x)  # (R, in)
            for i, m in enumerate(self.adapted):
                rows = slice(i * r, (i + 1) * r)
                gradients[f"{m.name}.lora_A"] += da[rows]
                gradients[f"{m.name}.lora_B"].add_(dy[:, m.start : m.end].T @ z[:, rows], alpha=self.scale)
        if not want_input:
            return None
        dx = self.frozen.input_grad(dy, dapart)
        if dz is not None and self.a is not None:
            kernels().dropout_backward(dx, dz @ self.a, mask)
        return dx


def new_adapter(shape: tuple[int, int], rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) from the uniform distribution PEFT uses (Kaiming, a = sqrt 5) and B (out, rank) zero, float32."""
    bound = math.sqrt(1.0 / shape[1])
    a = torch.empty(rank, shape[1]).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(shape[0], rank)
