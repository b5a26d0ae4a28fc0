"""The small operations between the matrix products, in plain PyTorch. Where a compiler is at hand, `native` offers the
same functions fused in C; these are the reference, used everywhere else and in tests.

Shapes: T tokens, D hidden size, F MLP size. Activations are float32 or bfloat16, the residual stream is float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MASK32 = 0xFFFFFFFF


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


# --- loss -------------------------------------------------------------------------------------------------------------


# --- nf4 --------------------------------------------------------------------------------------------------------------

NF4_BLOCK = 64
NF4_LEVELS = torch.tensor(  # the quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E)
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + head_dim/2), Hugging Face's layout.

    Args:
        x: (T, heads, head_dim).
        cos: (T, head_dim/2) float32. `sin` likewise; with its sign changed this is the inverse rotation.

    Returns:
        As x, in x's dtype; computed in float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
