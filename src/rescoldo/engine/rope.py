"""Rotary position embeddings (RoFormer, arXiv 2104.09864); their scalings are in rope_scaling.py."""

from __future__ import annotations

from dataclasses import replace

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.rope_scaling import scaling_of


def inverse_frequencies(config: DecoderConfig) -> tuple[torch.Tensor, float]:
    """The inverse frequency of each pair (rotary_dim/2,) float32 and the factor on cos and sin, with the config's
    scaling.

    Raises:
        RescoldoError: the kind of scaling is unknown.
    """
    row, scaling = scaling_of(config)
    return row.rotate(config, scaling)


def rope_tables(config: DecoderConfig, length: int, kind: str = "main") -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for positions 0..length-1, each (length, rotary_dim/2) float32, of one kind of layer: "main" or
    "local" (DecoderConfig.rope)."""
    speeds, factor = inverse_frequencies(of_kind(config, kind))
    angles = torch.outer(torch.arange(length, dtype=torch.float32), speeds)
    return angles.cos() * factor, angles.sin() * factor


def of_kind(config: DecoderConfig, kind: str) -> DecoderConfig:
    """The config with the rotation and head size of one kind of layer: "main" or "local" (DecoderConfig.rope)."""
    if config.head_dims:
        sizes = {config.head_size(i) for i in range(config.n_layers) if config.rope(i) == kind}
        if len(sizes) > 1:
            raise ValueError(f"layers with the same rotation ({kind}) have heads of several sizes: {sorted(sizes)}")
        config = replace(config, head_dim=next(iter(sizes), config.head_dim))
    if kind == "local":
        assert config.local_rope_theta is not None
        return replace(config, rope_theta=config.local_rope_theta, rope_scaling=None)
    return config


Rotation = tuple[torch.Tensor, torch.Tensor]  # cos and sin of some rows, (T, r/2) float32, for r rotated elements


def query_factors(config: DecoderConfig, length: int) -> torch.Tensor:
    """The factors on the queries at positions 0..length-1, (length,) float32: DecoderConfig.query_growth."""
    if config.query_growth is None:
        return torch.ones(length)
    beta, context = config.query_growth
    return 1 + beta * torch.log(1 + torch.floor(torch.arange(length, dtype=torch.float32) / context))


class RopeTables:
    """cos and sin for all kinds of layers of a decoder; the tables grow with the requested positions."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.kinds = sorted({config.rope(i) for i in range(config.n_layers)} - {"none"})
        if config.query_growth is not None and (config.no_rope or config.rotary_dim):
            raise ValueError("query_growth is only supported if whole heads are rotated")
        self._length = 0
        self._tables: dict[str, Rotation] = {}

    def _grow(self, length: int) -> None:
        if length <= self._length:
            return
        self._length = max(length, 2 * self._length, 64)
        self._tables = {kind: rope_tables(self.config, self._length, kind) for kind in self.kinds}
        if self.config.query_growth is not None:
            factors = query_factors(self.config, self._length)[:, None]
            for kind in self.kinds:
                cos, sin = self._tables[kind]
                self._tables[f"{kind} queries"] = factors * cos, factors * sin

    def at(self, positions: torch.Tensor) -> dict[str, Rotation]:
        """The rotations of rows at `positions` (T,) int64, by kind of layer; layers without rotation have no entry.
        Separate rotations of queries (DecoderConfig.query_growth) have the key "KIND queries"."""
        self._grow(int(positions.max()) + 1)
        return {kind: (cos[positions], sin[positions]) for kind, (cos, sin) in self._tables.items()}
