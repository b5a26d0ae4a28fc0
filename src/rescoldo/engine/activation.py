"""The gated MLP's activations, forward and backward: act(gate) · up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rescoldo.engine.kernels.choose import kernels


@dataclass(frozen=True)
class Activation:
    """`forward`: gate_up (T, 2F) → act(gate) · up (T, F) in its dtype. `backward_`: overwrites gate_up with its
    gradient, for the gradient (T, F) of the product. `plain`: act alone, for the reference."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    backward_: Callable[[torch.Tensor, torch.Tensor], None]
    plain: Callable[[torch.Tensor], torch.Tensor]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU (arXiv 1606.08415) by the approximation with tanh."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def _gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (_gelu_tanh(gate) * up).to(gate_up.dtype)


def _gelu_mul_backward_(gate_up: torch.Tensor, da: torch.Tensor) -> None:
    gate, up = gate_up.float().chunk(2, dim=-1)
    da = da.float()
    dgate = torch.ops.aten.gelu_backward(da * up, gate, approximate="tanh")
    gate_up.copy_(torch.cat((dgate, da * _gelu_tanh(gate)), dim=-1))


ACTIVATIONS = {
    "silu": Activation(
        lambda gate_up: kernels().silu_mul(gate_up),
        lambda gate_up, da: kernels().silu_mul_backward_(gate_up, da),
        torch.nn.functional.silu,
    ),
    "gelu_tanh": Activation(_gelu_mul, _gelu_mul_backward_, _gelu_tanh),
}
