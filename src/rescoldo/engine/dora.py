"""DoRA (arXiv 2402.09353): LoRA trains the direction of a weight's rows, and their lengths are trained separately.

    u = x·Wᵀ + s·(drop(x)·Aᵀ)·Bᵀ        y = g ∘ u + b        g = m / n,   n = ‖W + s·B·A‖ by row

n is a constant in the backward pass (section 4.3 there, and PEFT's), so that

    du = g ∘ dy        dm = Σ_t dy ∘ u / n

and everything else is as in LoRA, with du for dy. n² is the square of W's norm, computed once, plus the terms of A and
B:

    n² = ‖W‖² + 2s·Σ_r (W·Aᵀ) ∘ B + s²·Σ_r (B·(A·Aᵀ)) ∘ B

where W·Aᵀ is the frozen product for r rows. Dropout is on A's input alone, as in LoRA; PEFT, which has (g - 1) ∘
W·drop(x) when dropout is on, needs another product with W for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from rescoldo.engine.linear import FrozenLinear, Member

_CACHED = 1 << 16  # float32 numbers that stay in a core's cache between two uses


class Magnitudes:
    """The gains g of one group of linears, for its current adapters and magnitudes.

    Args:
        frozen: the group's weight.
        members: the adapted linears.
        magnitudes: for each member, (end - start,) float32.
        squared: ‖W‖² of each of the group's rows, (out,) float32.
        bias: (out,) or None; it is not scaled.
    """

    def __init__(
        self,
        frozen: FrozenLinear,
        members: Sequence[Member],
        magnitudes: Sequence[torch.Tensor],
        squared: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        self.members, self.bias = members, bias
        rows = torch.cat([m.a for m in members]).to(frozen.dtype)
        products = frozen.adapted(None, None).forward(rows, None)[0].float()  # (R, out): A·Wᵀ of all members
        self.gain = torch.ones(frozen.out_features)
        self.norms: list[torch.Tensor] = []
        first = 0
        for m, magnitude in zip(members, magnitudes, strict=True):
            with_w = products[first : first + len(m.a), m.start : m.end].T  # (its outputs, r)
            among_a = m.b @ (m.a @ m.a.T)
            added = 2 * m.scale * (with_w * m.b).sum(1) + m.scale**2 * (among_a * m.b).sum(1)
            norm = (squared[m.start : m.end] + added).clamp_min(1e-24).sqrt()
            self.gain[m.start : m.end] = magnitude / norm
            self.norms.append(norm)
            first += len(m.a)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """u (T, out) → y (T, out)."""
        y = torch.empty_like(u)
        for some in _pieces(u):
            y[some] = u[some].to(torch.float32, copy=True).mul_(self.gain)
        return y if self.bias is None else y.add_(self.bias)

    def backward(self, dy: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """dy and u (T, out) → du (T, out), and each member's dm (its outputs,) float32."""
        du = torch.empty_like(dy, memory_format=torch.contiguous_format)
        together = torch.zeros(dy.shape[1])  # Σ_t dy ∘ u
        for some in _pieces(dy):
            wide = dy[some].to(torch.float32, copy=True)
            together += (wide * u[some].float()).sum(0)
            du[some] = wide.mul_(self.gain)
        return du, [together[m.start : m.end] / norm for m, norm in zip(self.members, self.norms, strict=True)]


def _pieces(rows: torch.Tensor) -> Iterator[slice]:
    """Slices of rows whose float32 copy fits into the cache: mixed types on whole tensors are several times slower."""
    step = max(1, _CACHED // rows.shape[1])
    return (slice(first, first + step) for first in range(0, len(rows), step))
