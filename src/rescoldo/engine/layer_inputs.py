"""Per-layer embeddings: an embedding of each token for each layer, besides the model's own (Gemma 3n and 4)."""

from __future__ import annotations

import math

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.blocks import Matrix
from rescoldo.engine.kernels.choose import kernels, select_rows
from rescoldo.engine.linear import PlainLinear

_ROWS = 512  # at a time, since a row of the table has layers x p elements


class LayerEmbeddings:
    """The input that each layer gets for each token. T rows, D hidden size, L layers, p width of one layer's
    embeddings:

        e = (norm(W·h / √D) + √p · table[token]) / √2        norm over the p elements of each layer

    where h is the model's embedding of the token, scaled as for the first layer. Frozen, so there is no backward pass.

    Args:
        table: (V, ≥ L·p), one layer after the other; only the rows of the requested tokens are read.
        projection: W (≥ L·p, D).
        norm: (p,).
        config: the decoder's shapes.
        dtype: of the result.
    """

    def __init__(
        self, table: Matrix, projection: torch.Tensor, norm: torch.Tensor, config: DecoderConfig, dtype: torch.dtype
    ) -> None:
        self.config, self.table, self.norm, self.dtype = config, table, norm.to(dtype, copy=True), dtype
        self.width = config.n_layers * config.layer_input_dim  # less than the table's in a truncated model
        self.projection = PlainLinear([projection[: self.width].to(dtype)], dtype)

    def rows(self, tokens: torch.Tensor, h: torch.Tensor) -> list[torch.Tensor]:
        """tokens (T,) int64 and their embeddings h (T, D) float32 → a list with (T, p) for each layer."""
        c = self.config
        out = torch.empty(c.n_layers, len(tokens), c.layer_input_dim, dtype=self.dtype)
        for start in range(0, len(tokens), _ROWS):
            part = slice(start, start + _ROWS)
            x = (h[part] / math.sqrt(c.hidden_size)).to(self.dtype)
            projected = self.projection.forward(x).float().view(-1, c.layer_input_dim)
            normed, _, _ = kernels().rms_norm(projected, self.norm, c.norm_eps)
            looked_up = select_rows(self.table, tokens[part])[:, : self.width]
            together = normed.float().view(-1, self.width) + math.sqrt(c.layer_input_dim) * looked_up
            out[:, part] = (together / math.sqrt(2)).unflatten(1, (c.n_layers, -1)).transpose(0, 1)
        return list(out)
