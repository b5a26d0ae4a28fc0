"""Element-wise functions of a decoder: the gated MLP's activations, forward and backward, and soft caps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from rescoldo.engine.kernels.choose import kernels


@dataclass(frozen=True)
class Activation:
    """`forward`: gate_up (T, 2F) → act(gate) · up (T, F) in its dtype. `backward_`: overwrites gate_up with its
    gradient, for the gradient (T, F) of the product. `plain`: act alone, for the reference."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    backward_: Callable[[torch.Tensor, torch.Tensor], None]
    plain: Callable[[torch.Tensor], torch.Tensor]


def soft_cap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap · tanh(x / cap), which stays within ±cap (Gemma 2, arXiv 2408.00118); x itself if cap is None."""
    return x if cap is None else cap * torch.tanh(x / cap)


ACTIVATIONS = {
    "silu": Activation(
        lambda gate_up: kernels().silu_mul(gate_up),
        lambda gate_up, da: kernels().silu_mul_backward_(gate_up, da),
        torch.nn.functional.silu,
    ),
    "gelu_tanh": Activation(
        lambda gate_up: kernels().gelu_mul(gate_up),
        lambda gate_up, da: kernels().gelu_mul_backward_(gate_up, da),
        partial(torch.nn.functional.gelu, approximate="tanh"),
    ),
}
