"""Candidates of the speedrun that the program itself does not have: an optimizer and an initialization of LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

GRADIENT_EXAMPLES = 4  # that an initialization from the gradient sees
KAIMING = 3**-0.5  # the norm of a row of A by PEFT's initialization


class Muon:
    """Muon (Jordan et al. 2024) on LoRA's factors: momentum, made orthogonal.

    The update of a (rows, columns) factor is scaled by 0.2 sqrt(max(rows, columns)), which gives it the root mean
    square of AdamW's (arXiv 2502.16982), so that rates mean the same. The factors' short side is the rank, so the
    orthogonal matrix is found through the eigenvalues of a (rank, rank) matrix, not by Newton-Schulz iteration.

    Args:
        parameters: matrices by name, changed in place; their gradients are in `.grad`.
        plus: B's rate as a multiple of A's.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], plus: float = 1.0, momentum: float = 0.9) -> None:
        self.parameters, self.plus, self.momentum = parameters, plus, momentum
        self.means = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change the parameters; `rate` is that of A."""
        for name, p in self.parameters.items():
            gradient = p.grad
            if gradient is None:
                continue
            mean = self.means[name].lerp_(gradient, 1 - self.momentum)
            direction = orthogonal(mean.lerp(gradient, 1 - self.momentum))  # Nesterov's momentum
            p.add_(direction, alpha=-rate * (self.plus if "lora_B" in name else 1.0) * 0.2 * max(p.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """U V' of a matrix's singular value decomposition U S V', without directions whose singular value is 0."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values, vectors = torch.linalg.eigh((wide @ wide.T).double())
    smallest = values.max().clamp_min(1e-30) * 1e-9
    inverse = torch.where(values > smallest, values, torch.inf).rsqrt()
    found = ((vectors * inverse) @ vectors.T).to(matrix.dtype) @ wide
    return found if wide is matrix else found.T


@torch.no_grad()
def from_gradient(parameters: Mapping[str, torch.Tensor], fill: Callable[[], None]) -> None:
    """Let A's rows span the first right singular vectors of the gradient of the product (LoRA-GA, arXiv 2407.05000).

    One power iteration instead of a decomposition, since a frozen weight's whole gradient G is never there: with B = 0
    the gradient of B is G A', with B = orth(G A') that of A is B' G.

    Args:
        parameters: lora_A (rank, in) and lora_B (out, rank), B being 0; changed in place, B is 0 again afterwards.
        fill: puts the gradients for the parameters' present values into `.grad`.
    """
    with torch.enable_grad():
        fill()
    for name, p in parameters.items():
        if "lora_B" in name and p.grad is not None:
            p.copy_(torch.linalg.qr(p.grad)[0] * 1e-4)  # so small that the loss stays where it was
    with torch.enable_grad():
        fill()
    for name, p in parameters.items():
        if "lora_B" in name:
            p.zero_()
        elif p.grad is not None:
            p.copy_(torch.linalg.qr(p.grad.T)[0].T * KAIMING)
