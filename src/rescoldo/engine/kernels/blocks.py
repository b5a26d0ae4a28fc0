"""Weights in blocks of a few bits, as GGUF files and QLoRA store them, and their plain decoding.

Native kernels decode them in C (blocks.c), 32 numbers at a time, just before a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rescoldo.engine.kernels.ops import NF4_BLOCK, NF4_LEVELS

NF4 = "nf4"
# formats that products take as they are, in the order of blocks.c
KINDS = (NF4, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
_PIECE = 1 << 18  # numbers decoded at a time: they stay in the processor's cache


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix (out, in) in blocks.

    Attributes:
        kind: "nf4" or ggml's name of the format; products and `native` take those in KINDS.
        data: (out, bytes a row) uint8, maybe mapped from a file; never write into it.
        shape: (out, in); `data` has more rows than `out` where `order` picks some.
        scales: nf4's, (out, in/64) bfloat16; ggml's stand in the data.
        order: (out,) int64: row i of the matrix is data[order[i]]; None: the same order.
    """

    kind: str
    data: torch.Tensor
    shape: tuple[int, int]
    scales: torch.Tensor | None = None
    order: torch.Tensor | None = None

    def numbers(self) -> torch.Tensor:
        """The matrix as float32, (out, in)."""
        which = slice(self.shape[0]) if self.order is None else self.order
        data = self.data[which]
        if self.scales is None:
            return torch.from_numpy(decode_ggml(data.numpy(), self.kind)).view(-1, self.shape[1])
        codes = torch.stack((data & 15, data >> 4), dim=-1).flatten(1)
        values = NF4_LEVELS[codes.int()].unflatten(1, (-1, NF4_BLOCK)) * self.scales[which].float()[:, :, None]
        decoded: torch.Tensor = values.flatten(1)
        return decoded


Matrix = torch.Tensor | QuantizedMatrix


@dataclass(frozen=True)
class LazyInt8:
    """An int8 weight that is made from blocks whenever it is needed: the parts' rows one behind the other, times
    `channel_scale` (in,) float32, times `inverse` (out,) float32, rounded."""

    parts: Sequence[QuantizedMatrix]
    channel_scale: torch.Tensor
    inverse: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]


def decode_ggml(raw: np.ndarray[Any, np.dtype[np.uint8]], kind: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """ggml's blocks of type `kind` as float32 in one row, by the gguf package, in pieces that stay in the processor's
    cache (ten times as fast as row by row, the same numbers)."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    form = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[form]
    raw = raw.reshape(-1)
    n_blocks, step = raw.size // size, max(_PIECE // block, 1)
    decoded = np.empty(n_blocks * block, np.float32)
    for start in range(0, n_blocks, step):
        end = min(start + step, n_blocks)
        piece = raw[start * size : end * size].reshape(1, -1)
        decoded[start * block : end * block] = dequantize(piece, form).reshape(-1)
    return decoded
