"""Rotary position embeddings (RoFormer, arXiv 2104.09864) and the scalings that the supported models use."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.errors import RescoldoError


def inverse_frequencies(config: DecoderConfig) -> tuple[torch.Tensor, float]:
    """Per-pair rotation speeds (rotary_dim/2,) float32 and the factor on cos and sin (1 but for YaRN and longrope).

    Raises:
        RescoldoError: a scaling of another kind than linear, llama3, yarn, dynamic, longrope, proportional or
            GGUF's factor list.
    """
    dim = config.rotary_dim or config.head_dim
    half = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    speeds = 1.0 / (config.rope_theta**half)
    scaling = config.rope_scaling
    kind = str(scaling.get("rope_type", scaling.get("type", "default"))) if scaling else "default"
    if scaling is None or kind in ("default", "dynamic"):
        return speeds, 1.0  # dynamic NTK changes nothing up to max_positions, and training stays below it
    if kind == "linear":
        return speeds / float(scaling["factor"]), 1.0
    if kind == "factors":
        return speeds / torch.tensor(scaling["factors"], dtype=torch.float32), 1.0
    if kind == "proportional":  # the pairs behind the first part of the head have angle 0: they are not rotated
        pairs = int(float(scaling.get("partial_rotary_factor", 1.0)) * dim // 2)
        turned = torch.arange(dim // 2) < pairs
        return torch.where(turned, speeds / float(scaling.get("factor", 1.0)), 0.0), 1.0
    if kind == "llama3":
        return _llama3(speeds, scaling), 1.0
    if kind == "yarn":
        return _yarn(config, scaling)
    if kind == "longrope":  # arXiv 2402.13753; max_positions ends where the long factors would begin
        return speeds / torch.tensor(scaling["short_factor"], dtype=torch.float32), float(scaling["attention_factor"])
    raise RescoldoError(
        f"rope scaling of type {kind!r} is not supported",
        where="config.json, rope_scaling",
        fix="models with no scaling, linear, llama3, yarn, longrope, proportional or dynamic work",
    )


def _llama3(speeds: torch.Tensor, scaling: dict[str, float]) -> torch.Tensor:
    factor, low, high = float(scaling["factor"]), float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / speeds
    slowed = torch.where(wavelength > context / low, speeds / factor, speeds)
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * slowed / factor + smooth * slowed
    medium = ~(wavelength < context / high) & ~(wavelength > context / low)
    return torch.where(medium, blended, slowed)


def _yarn(config: DecoderConfig, scaling: dict[str, float]) -> tuple[torch.Tensor, float]:
    """YaRN (arXiv 2309.00071), with the defaults that Hugging Face gives the fields left out."""
    dim, base = config.rotary_dim or config.head_dim, config.rope_theta
    context = float(scaling.get("original_max_position_embeddings") or config.max_positions)
    factor = float(scaling["factor"])
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)

    def magnitude(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        weight, weight_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = (
            magnitude(factor, weight) / magnitude(factor, weight_all) if weight and weight_all else magnitude(factor)
        )

    def correction(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = correction(fast), correction(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    speeds = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
    return speeds / factor * ramp + speeds * (1 - ramp), float(attention)


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


Rotation = tuple[torch.Tensor, torch.Tensor]  # cos and sin of some rows, (T, r/2) float32, r the elements rotated


def query_factors(config: DecoderConfig, length: int) -> torch.Tensor:
    """What queries at positions 0..length-1 are multiplied by, (length,) float32: DecoderConfig.query_growth."""
    if config.query_growth is None:
        return torch.ones(length)
    beta, context = config.query_growth
    return 1 + beta * torch.log(1 + torch.floor(torch.arange(length, dtype=torch.float32) / context))


class RopeTables:
    """cos and sin of all kinds of layers of a decoder; they grow with the positions asked for."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.kinds = sorted({config.rope(i) for i in range(config.n_layers)} - {"none"})
        if config.query_growth is not None and (config.no_rope or config.rotary_dim):
            raise ValueError("query_growth goes into the rotation of whole heads")
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
        """The rotations of rows at `positions` (T,) int64, by kind of layer; layers that do not rotate have none.
        Where queries grow (DecoderConfig.query_growth), theirs are "KIND queries"."""
        self._grow(int(positions.max()) + 1)
        return {kind: (cos[positions], sin[positions]) for kind, (cos, sin) in self._tables.items()}
