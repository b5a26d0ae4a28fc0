"""The small operations between the matrix products, in plain PyTorch. Where a compiler is at hand, `native` offers the
same functions fused in C; these are their twins, used everywhere else and in tests.

Shapes: T tokens, D hidden size, F MLP size. Activations are float32 or bfloat16, the residual stream is float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MASK32 = 0xFFFFFFFF


def rms_norm(h: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RMSNorm (arXiv 1910.07467) of h (T, D) float32, in the dtype of its weight (D,).

    Returns:
        The normed and weighted rows (T, D), the normed rows without the weight (T, D), 1 / rms (T,) float32.
    """
    rstd = torch.rsqrt(h.pow(2).mean(-1) + eps)
    normed = (h * rstd[:, None]).to(weight.dtype)
    return normed * weight, normed, rstd


def rms_norm_backward(
    dy: torch.Tensor, normed: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, dh: torch.Tensor
) -> None:
    """Add to dh (T, D) float32, in place, the gradient that dy (T, D) sends through y = normed · weight."""
    g = dy.float() * weight.float()
    x = normed.float()
    dh += rstd[:, None] * (g - x * (g * x).mean(-1, keepdim=True))


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up (T, 2F) → silu(gate) · up, (T, F) in its dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def silu_mul_backward_(gate_up: torch.Tensor, da: torch.Tensor) -> None:
    """Replace gate_up (T, 2F) by the gradient of silu(gate) · up, for da (T, F)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    da = da.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    dgate = da * up * (sigmoid + silu * (1 - sigmoid))
    gate_up.copy_(torch.cat((dgate, da * silu), dim=-1))


# --- dropout ----------------------------------------------------------------------------------------------------------


def mix32(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash (Wellons' lowbias32) of each element of an int64 tensor holding values below 2³²."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def mix_key(*parts: int) -> int:
    """One 32-bit key out of several integers, order mattering."""
    key = 0x9E3779B9
    for part in parts:
        for half in (part & _MASK32, (part >> 32) & _MASK32):
            x = (key ^ half) & _MASK32
            x ^= x >> 16
            x = (x * 0x7FEB352D) & _MASK32
            x ^= x >> 15
            x = (x * 0x846CA68B) & _MASK32
            key = (x ^ (x >> 16)) + 0x9E3779B9 & _MASK32
    return key


@dataclass(frozen=True)
class Dropout:
    """A dropout mask as a function, not a state: whether element (row, column) is kept depends on `key` (seed, step,
    layer, site), on the row's own identity and on the column, so that forward, backward, a resumed run and any order
    of the examples see the same mask.

    Attributes:
        threshold: elements whose random byte is below it are dropped: the probability is threshold / 256.
        key: 32 bits, from mix_key.
        rows: (T,) int64, the identity of each row (example in the step, position), below 2³².
    """

    threshold: int
    key: int
    rows: torch.Tensor

    @property
    def scale(self) -> float:
        """What kept elements are multiplied by, the inverse of the probability to be kept."""
        return 256.0 / (256 - self.threshold)

    def mask(self, columns: int) -> torch.Tensor:
        """(T, columns) bool, True where the element is kept."""
        row_keys = mix32(self.rows ^ self.key)[:, None]
        words = torch.arange((columns + 3) // 4, dtype=torch.int64)[None, :]
        random = mix32((row_keys + words * 0x9E3779B9) & _MASK32)  # four bytes each, lowest first
        shifts = torch.tensor([0, 8, 16, 24])
        drawn = (random[:, :, None] >> shifts) & 0xFF
        return (drawn >= self.threshold).flatten(1)[:, :columns]


def dropout(x: torch.Tensor, how: Dropout) -> torch.Tensor:
    """x (T, D) with some elements zeroed and the rest scaled, in a new tensor of x's dtype."""
    return torch.where(how.mask(x.shape[1]), x.float() * how.scale, 0.0).to(x.dtype)


def dropout_backward(dx: torch.Tensor, dropped: torch.Tensor, how: Dropout | None) -> None:
    """Add to dx (T, D), in place, the gradient `dropped` (T, D) that arrives behind the dropout."""
    if how is not None:
        dropped = dropout(dropped, how)
    dx += dropped


# --- loss -------------------------------------------------------------------------------------------------------------


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[float, torch.Tensor]:
    """logits (n, V), targets (n,) int64 → (summed loss in nats, weight · gradient (n, V) in logits' dtype)."""
    scores = logits.float()
    lse = torch.logsumexp(scores, dim=-1)
    loss = float((lse - scores.gather(1, targets[:, None])[:, 0]).double().sum())
    gradient = torch.exp(scores - lse[:, None])
    gradient[torch.arange(len(targets)), targets] -= 1
    return loss, (gradient * weight).to(logits.dtype)


# --- nf4 --------------------------------------------------------------------------------------------------------------

NF4_BLOCK = 64
NF4_LEVELS = torch.tensor(  # the quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E)
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def nf4_pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (out, in), in a multiple of 64 → codes (out, in/2) uint8, two a byte, low first; scales (out, in/64)."""
    blocks = weight.float().unflatten(1, (-1, NF4_BLOCK))
    scales = blocks.abs().amax(-1).to(torch.bfloat16)
    unit = blocks / scales.float().clamp_min(1e-30)[:, :, None]
    edges = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
    codes = torch.bucketize(unit.flatten(1), edges, out_int32=True).to(torch.uint8)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scales
