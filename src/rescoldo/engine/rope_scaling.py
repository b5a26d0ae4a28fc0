"""RoPE scalings, a row of SCALINGS each: the rotation, and its representation in config.json and GGUF.

To add one: a row, with its functions in this file. A scaling is a dictionary in the format of Hugging Face's
config.json ({"rope_type": name, "factor": …}); "factors" is one that only GGUF files have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.errors import RescoldoError

Scaling = dict[str, Any]
Speeds = tuple[torch.Tensor, float]
UNROTATED = 1e30  # GGUF's divisor for the inverse frequency of a pair that is not rotated
_LOG = "rope.scaling.yarn_log_multiplier"
_TYPE, _FACTOR = "rope.scaling.type", "rope.scaling.factor"
_ATTENTION, _CONTEXT = "rope.scaling.attn_factor", "rope.scaling.original_context_length"


class GgufValues(Protocol):
    """Metadata of a GGUF file; keys without the architecture's prefix."""

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in [low, high]."""

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number."""

    def get(self, key: str) -> Any:
        """A scalar value; None if the key is missing."""


def plain_speeds(config: DecoderConfig) -> torch.Tensor:
    """The inverse frequencies of RoFormer (arXiv 2104.09864), (rotary_dim/2,) float32."""
    dim = config.rotary_dim or config.head_dim
    half = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (config.rope_theta**half)


def _plain(config: DecoderConfig, scaling: Scaling) -> Speeds:
    return plain_speeds(config), 1.0


@dataclass(frozen=True)
class RopeScaling:
    """A kind of scaling.

    Attributes:
        rotate: computes the inverse frequencies (rotary_dim/2,) float32, and the factor on cos and sin.
        in_config: whether config.json may name it.
        needs: the numbers that config.json must have for it, in addition to rope_theta.
        ascending: two of them, the first of which must be less than the second; or none.
        lists: its lists of divisors of the inverse frequencies → their tensors in GGUF.
        takes_share: whether partial_rotary_factor determines which pairs of a head are rotated. With the others it
            determines which part of a head is rotated, so that there are fewer pairs.
        complete: (scaling, the model's context, rotary_dim) → the scaling with everything `rotate` needs; raises
            ValueError if it does not fit. A scaling that then has max_position_embeddings is used only up to
            original_max_position_embeddings (`short_context`).
        read_gguf: (values, the model's context) → the scaling without lists; None if the values scale nothing. None
            instead of a function: GGUF has no name for it.
        write_gguf: (config, scaling) → metadata: text, integers and float32 numbers.
        write_lists: (config, scaling) → the tensors of divisors.
        to_config: (config, scaling) → the scaling in config.json's format.
    """

    rotate: Callable[[DecoderConfig, Scaling], Speeds]
    in_config: bool = True
    needs: tuple[str, ...] = ()
    ascending: tuple[str, ...] = ()
    lists: Mapping[str, str] = field(default_factory=dict)
    takes_share: bool = False
    complete: Callable[[Scaling, int, int], Scaling] = lambda scaling, whole, rotary_dim: scaling
    read_gguf: Callable[[GgufValues, int], Scaling | None] | None = None
    write_gguf: Callable[[DecoderConfig, Scaling], dict[str, str | int | float]] = lambda config, scaling: {}
    write_lists: Callable[[DecoderConfig, Scaling], dict[str, list[float]]] = lambda config, scaling: {}
    to_config: Callable[[DecoderConfig, Scaling], Scaling] = lambda config, scaling: scaling


# --- linear -----------------------------------------------------------------------------------------------------------


def _linear(config: DecoderConfig, scaling: Scaling) -> Speeds:
    return plain_speeds(config) / float(scaling["factor"]), 1.0


def _read_linear(values: GgufValues, context: int) -> Scaling | None:
    factor = values.number(LEGACY_LINEAR if values.get(_TYPE) is None else _FACTOR)
    return {"factor": factor} if factor != 1.0 else None


def _write_linear(config: DecoderConfig, scaling: Scaling) -> dict[str, str | int | float]:
    return {_TYPE: "linear", _FACTOR: float(scaling["factor"])}


# --- llama3 -----------------------------------------------------------------------------------------------------------


def _llama3(config: DecoderConfig, scaling: Scaling) -> Speeds:
    speeds = plain_speeds(config)
    factor, low, high = float(scaling["factor"]), float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / speeds
    slowed = torch.where(wavelength > context / low, speeds / factor, speeds)
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * slowed / factor + smooth * slowed
    medium = ~(wavelength < context / high) & ~(wavelength > context / low)
    return torch.where(medium, blended, slowed), 1.0


def _llama3_lists(config: DecoderConfig, scaling: Scaling) -> dict[str, list[float]]:
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    return {_LIST: (1.0 / config.rope_theta**half / _llama3(config, scaling)[0].double()).tolist()}


# --- YaRN -------------------------------------------------------------------------------------------------------------


def _yarn(config: DecoderConfig, scaling: Scaling) -> Speeds:
    """YaRN (arXiv 2309.00071), with Hugging Face's defaults for missing fields."""
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


def _read_yarn(values: GgufValues, context: int) -> Scaling:
    factor = values.number(_FACTOR)
    scaling: Scaling = {
        "factor": factor,
        "original_max_position_embeddings": values.integer(_CONTEXT, 1, 1 << 30, context),
        "beta_fast": values.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": values.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    attention = values.number(_ATTENTION, 1.0)
    weight = values.number(_LOG) if values.get(_LOG) not in (None, 0) else 0.0
    if attention != 1.0 or weight:
        grown = math.log(max(factor, 1.0))
        scaling["attention_factor"] = attention * (0.1 * grown + 1.0) / (0.1 * weight * grown + 1.0)
    return scaling


def _write_yarn(config: DecoderConfig, scaling: Scaling) -> dict[str, str | int | float]:
    if scaling.get("truncate") is False:
        raise RescoldoError("YaRN without truncation cannot be written as GGUF", fix="--to merged")
    found: dict[str, str | int | float] = {
        _TYPE: "yarn",
        _FACTOR: float(scaling["factor"]),
        _CONTEXT: int(scaling.get("original_max_position_embeddings") or config.max_positions),
        "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow") or 1.0),
    }
    usual = 0.1 * math.log(scaling["factor"]) + 1.0
    attention = _yarn(config, scaling)[1]
    if not math.isclose(attention, usual, rel_tol=1e-6):
        found[_ATTENTION] = attention / usual
    return found


# --- longrope ---------------------------------------------------------------------------------------------------------


def _longrope(config: DecoderConfig, scaling: Scaling) -> Speeds:
    """LongRoPE (arXiv 2402.13753); max_positions ends where the long factors would begin."""
    divisors = torch.tensor(scaling["short_factor"], dtype=torch.float32)
    return plain_speeds(config) / divisors, float(scaling["attention_factor"])


def _complete_longrope(scaling: Scaling, whole: int, rotary_dim: int) -> Scaling:
    """Add the factor on cos and sin, and the whole context."""
    lists = {key: [float(value) for value in scaling[key]] for key in SCALINGS["longrope"].lists}
    for key, divisors in lists.items():
        if len(divisors) != rotary_dim // 2:
            raise ValueError(f"RoPE parameter {key} has {len(divisors)} numbers, not {rotary_dim // 2}")
    original = scaling["original_max_position_embeddings"]
    if not isinstance(original, int) or original < 2:
        raise ValueError(
            f"RoPE parameter original_max_position_embeddings is {original!r:.80}, not a whole number above 1"
        )
    factor = scaling.get("factor", whole / original)
    attention = scaling.get("attention_factor", math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original)))
    return {
        "rope_type": scaling["rope_type"],
        **lists,
        "attention_factor": float(attention),
        "original_max_position_embeddings": min(original, whole),
        "max_position_embeddings": whole,
    }


def _read_longrope(values: GgufValues, context: int) -> Scaling:
    return {
        "attention_factor": values.number(_ATTENTION, 1.0),
        "original_max_position_embeddings": min(values.integer(_CONTEXT, 1, 1 << 30, context), context),
        "max_position_embeddings": context,
    }


def _write_longrope(config: DecoderConfig, scaling: Scaling) -> dict[str, str | int | float]:
    """Nothing: llama.cpp recognizes it by its tensors."""
    return {_CONTEXT: config.max_positions, _ATTENTION: float(scaling["attention_factor"])}


def _same_lists(config: DecoderConfig, scaling: Scaling) -> dict[str, list[float]]:
    return {tensor: scaling[key] for key, tensor in SCALINGS[scaling["rope_type"]].lists.items()}


def _without_context(config: DecoderConfig, scaling: Scaling) -> Scaling:
    """config.json has the whole context outside of the scaling."""
    return {key: value for key, value in scaling.items() if key != "max_position_embeddings"}


# --- proportional -----------------------------------------------------------------------------------------------------


def _proportional(config: DecoderConfig, scaling: Scaling) -> Speeds:
    """The pairs after the first part of the head have angle 0: they are not rotated (Gemma 4)."""
    dim = config.rotary_dim or config.head_dim
    pairs = int(float(scaling.get("partial_rotary_factor", 1.0)) * dim // 2)
    turned = torch.arange(dim // 2) < pairs
    return torch.where(turned, plain_speeds(config) / float(scaling.get("factor", 1.0)), 0.0), 1.0


def _proportional_lists(config: DecoderConfig, scaling: Scaling) -> dict[str, list[float]]:
    factor, pairs = float(scaling.get("factor", 1.0)), config.head_dim // 2
    rotated = int((_proportional(config, scaling)[0] > 0).sum())
    return {_LIST: [factor] * rotated + [UNROTATED] * (pairs - rotated)}


# --- a list of divisors, as in GGUF files -----------------------------------------------------------------------------

_LIST = "rope_freqs.weight"


def _factors(config: DecoderConfig, scaling: Scaling) -> Speeds:
    return plain_speeds(config) / torch.tensor(scaling["factors"], dtype=torch.float32), 1.0


def _as_llama3(config: DecoderConfig, scaling: Scaling) -> Scaling:
    """The list in config.json's format, if it is that of Llama 3.1 or 3.2.

    Raises:
        RescoldoError: it is another one.
    """
    for factor in (8.0, 32.0):
        llama3 = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        made = _llama3(replace(config, rope_scaling=llama3), llama3)[0]
        if torch.allclose(made, _factors(config, scaling)[0], rtol=1e-4, atol=0):
            return llama3
    raise RescoldoError("RoPE is scaled in a way that a Hugging Face config cannot express", fix="--to merged-gguf")


NO_SCALING = "default"
SCALINGS: Mapping[str, RopeScaling] = {
    NO_SCALING: RopeScaling(_plain),
    "linear": RopeScaling(_linear, needs=("factor",), read_gguf=_read_linear, write_gguf=_write_linear),
    # dynamic NTK changes nothing up to max_positions, and training does not exceed that
    "dynamic": RopeScaling(_plain, needs=("factor",)),
    "llama3": RopeScaling(
        _llama3,
        needs=("factor", "low_freq_factor", "high_freq_factor"),
        ascending=("low_freq_factor", "high_freq_factor"),
        write_lists=_llama3_lists,
    ),
    "yarn": RopeScaling(_yarn, needs=("factor",), read_gguf=_read_yarn, write_gguf=_write_yarn),
    "longrope": RopeScaling(
        _longrope,
        needs=("original_max_position_embeddings",),
        lists={"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"},
        complete=_complete_longrope,
        read_gguf=_read_longrope,
        write_gguf=_write_longrope,
        write_lists=_same_lists,
        to_config=_without_context,
    ),
    "proportional": RopeScaling(_proportional, takes_share=True, write_lists=_proportional_lists),
    "factors": RopeScaling(
        _factors,
        in_config=False,
        lists={"factors": _LIST},
        read_gguf=lambda values, context: {},
        write_lists=_same_lists,
        to_config=_as_llama3,
    ),
}
LEGACY_LINEAR = "rope.scale_linear"  # the key in files from before "rope.scaling.type"
LIST_TENSORS = frozenset(tensor for row in SCALINGS.values() for tensor in row.lists.values())


def scaling_of(config: DecoderConfig) -> tuple[RopeScaling, Scaling]:
    """The row of a decoder's scaling, and the scaling ({} if there is none).

    Raises:
        RescoldoError: the kind is unknown.
    """
    scaling = config.rope_scaling or {}
    kind = str(scaling.get("rope_type", scaling.get("type", NO_SCALING)))
    row = SCALINGS.get(kind)
    if row is None:
        raise RescoldoError(
            f"rope scaling of type {kind!r:.80} is not supported",
            where="config.json, rope_scaling",
            fix=f"supported: {', '.join(name for name, one in SCALINGS.items() if one.in_config)}",
        )
    return row, scaling


def short_context(scaling: Scaling | None, context: int) -> int:
    """The context up to which a model with this context is used here: shorter for scalings that rotate differently
    beyond the context of pretraining."""
    if scaling is None or "max_position_embeddings" not in scaling:
        return context
    return int(scaling["original_max_position_embeddings"])
