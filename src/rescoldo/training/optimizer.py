"""AdamW on a dictionary of tensors, gradient clipping and the learning-rate schedule. All state is plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from rescoldo.engine.kinds import A
from rescoldo.engine.weights import Tensors

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class AdamW:
    """AdamW (arXiv 1711.05101) with decoupled weight decay, operation for operation as torch.optim.AdamW.

    Args:
        plus: LoRA+ (arXiv 2402.12354): the learning rate of all parameters except A, as a multiple of A's. 1: the same.

    Attributes:
        first, second: running means of gradient and squared gradient, fp32, by parameter key.
    """

    def __init__(self, parameters: Tensors, weight_decay: float, plus: float = 1.0) -> None:
        self.parameters, self.weight_decay, self.plus = parameters, weight_decay, plus
        self.first = {key: torch.zeros_like(tensor) for key, tensor in parameters.items()}
        self.second = {key: torch.zeros_like(tensor) for key, tensor in parameters.items()}

    @torch.no_grad()
    def update(self, gradients: Tensors, lr: float, step: int) -> None:
        """Update the parameters in place; `lr` is A's learning rate, `step` counts from 1."""
        correction1, correction2 = 1 - BETA1**step, 1 - BETA2**step
        for key, parameter in self.parameters.items():
            gradient, m, v = gradients[key], self.first[key], self.second[key]
            rate = lr if key.endswith(A) else lr * self.plus
            parameter.mul_(1 - rate * self.weight_decay)
            m.lerp_(gradient, 1 - BETA1)
            v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            parameter.addcdiv_(m, (v.sqrt() / math.sqrt(correction2)).add_(EPS), value=-rate / correction1)

    def state(self) -> Tensors:
        """The moments in one flat dictionary, for a checkpoint."""
        return {f"first.{k}": t for k, t in self.first.items()} | {f"second.{k}": t for k, t in self.second.items()}

    def load_state(self, state: Tensors) -> None:
        """Restore the moments from `state`."""
        for key in self.parameters:
            self.first[key].copy_(state[f"first.{key}"])
            self.second[key].copy_(state[f"second.{key}"])


@torch.no_grad()
def clip(gradients: Tensors, max_norm: float) -> float:
    """Scale the gradients in place so that their global norm is at most `max_norm`; return the norm before scaling.

    If the norm is not finite, it is returned and the gradients stay unchanged.
    """
    norms = [torch.linalg.vector_norm(gradients[key]) for key in sorted(gradients)]  # summed in a fixed order
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if math.isfinite(norm.item()):
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for gradient in gradients.values():
            gradient.mul_(scale)
    return float(norm.item())


def warmup_steps(warmup: float, total: int) -> int:
    """The number of warm-up steps: a fraction of `total` (rounded up) if `warmup` is below 1, else the number itself;
    always less than `total`, because the first warm-up step has rate 0, and a run of a single step should train too."""
    return min(math.ceil(warmup * total) if warmup < 1 else int(warmup), total - 1)


# schedule → the factor on the peak rate, as a function of the completed fraction of the steps after the warm-up
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: max(0.0, 0.5 * (1.0 + math.cos(math.pi * done))),
    "linear": lambda done: max(0.0, 1.0 - done),
    "constant": lambda done: 1.0,
}


def lr_factor(step: int, warmup: int, total: int, schedule: str = "cosine") -> float:
    """The factor on the peak rate for optimizer step `step` (from 0): linear from 0 to 1, then by the schedule."""
    if step < warmup:
        return step / max(1, warmup)
    return SCHEDULES[schedule]((step - warmup) / max(1, total - warmup))
