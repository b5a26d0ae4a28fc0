"""A GGUF file's metadata as a DecoderConfig."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from rescoldo.base.gguf_header import GgufHeader
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.rope_scaling import LEGACY_LINEAR, SCALINGS, short_context
from rescoldo.errors import RescoldoError
from rescoldo.families import FAMILIES, Family, family_of_gguf
from rescoldo.families.unsupported import unsupported


def scalar(metadata: dict[str, Any], key: str, where: str) -> Any:
    """The metadata value of a key; None if it is missing.

    Raises:
        RescoldoError: it is a list.
    """
    value = metadata.get(key)
    if isinstance(value, list | np.ndarray):
        raise RescoldoError(f"metadata key {key} is a list, not one value", where=where)
    return value


_BY_LAYER = {  # what a key counts, for messages
    "attention.head_count": "numbers of attention heads",
    "attention.head_count_kv": "numbers of key-value heads",
    "feed_forward_length": "widths of the MLP",
}


class _Reader:
    """Typed access to the metadata of one architecture, with errors that name the key."""

    def __init__(self, path: Path, header: GgufHeader, prefix: str) -> None:
        self.path, self.metadata, self.prefix = path, header.metadata, prefix

    def fail(self, what: str, fix: str = "") -> RescoldoError:
        return RescoldoError(what, where=str(self.path), fix=fix)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in [low, high], or a list of that integer for every layer."""
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, np.ndarray) and value.size:
            several = ", ".join(str(one)[:20] for one in np.unique(value)[:4].tolist())
            what = f"{_BY_LAYER.get(key, key)} that differ from layer to layer"
            raise self.fail(
                f"architecture {self.prefix!r:.80} with {what} is not supported: metadata key {self.prefix}.{key} has "
                f"{several}"
            )
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            said = "is missing" if value is None else f"is {value!r:.80}, not a whole number from {low} to {high}"
            raise self.fail(f"metadata key {self.prefix}.{key} {said}")
        return value

    def integers(self, key: str, low: int, high: int, n: int) -> list[int]:
        """An integer in [low, high] for each of `n` layers, or one for all."""
        values = self.metadata.get(f"{self.prefix}.{key}")
        if not isinstance(values, np.ndarray):
            return [self.integer(key, low, high)] * n
        found: list[Any] = values.tolist()
        if len(found) != n or not all(type(value) is int and low <= value <= high for value in found):
            raise self.fail(f"metadata key {self.prefix}.{key} is not a whole number from {low} to {high} by layer")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            said = "is missing" if value is None else f"is {value!r:.80}, not a positive number"
            raise self.fail(f"metadata key {self.prefix}.{key} {said}")
        return float(value)

    def get(self, key: str) -> Any:
        """A scalar value."""
        return scalar(self.metadata, f"{self.prefix}.{key}", str(self.path))


def _rope_scaling(reader: _Reader, header: GgufHeader, rotary_dim: int, max_positions: int) -> dict[str, Any] | None:
    """The RoPE scaling in Hugging Face's format: named by its type, or recognized by its tensors of divisors of the
    rotary_dim / 2 inverse frequencies."""
    kind = reader.get("rope.scaling.type")
    if kind is None and reader.get(LEGACY_LINEAR) is not None:
        kind = "linear"
    found = []
    for name, row in SCALINGS.items():
        named = kind == name and not row.lists
        if row.read_gguf is None or not (named or any(tensor in header.tensors for tensor in row.lists.values())):
            continue
        lists = {key: _factors(reader, header, tensor, rotary_dim) for key, tensor in row.lists.items()}
        scaling = row.read_gguf(reader, max_positions)
        found.append((name, None if scaling is None else {"rope_type": name, **lists, **scaling}))
    names = [name for name, _ in found]
    if kind not in (None, "none", *names):
        known = ", ".join(name for name, row in SCALINGS.items() if row.read_gguf is not None and not row.lists)
        raise reader.fail(f"RoPE scaling {kind!r:.80} is not supported: expected one of none, {known}")
    scalings = [scaling for _, scaling in found if scaling is not None]
    if len(scalings) > 1:
        raise reader.fail(f"the file has several RoPE scalings: {', '.join(names)}")
    return scalings[0] if scalings else None


def _factors(reader: _Reader, header: GgufHeader, name: str, rotary_dim: int) -> list[float]:
    """A tensor of divisors of the inverse frequencies."""
    factors, n = header.tensors.get(name), rotary_dim // 2
    if factors is None:
        raise reader.fail(f"there is no tensor {name}")
    if factors.type_name != "F32" or factors.shape != (n,):
        raise reader.fail(f"{name} is {factors.type_name} {list(factors.shape)}, not F32 [{n}]")
    values = np.fromfile(reader.path, "<f4", n, offset=factors.offset)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise reader.fail(f"{name} holds a number that is not positive")
    found: list[float] = values.tolist()
    return found


def _windows(family: Family, reader: _Reader, n_layers: int, max_positions: int) -> tuple[int | None, ...]:
    if reader.get("attention.sliding_window") in (None, 0):
        return ()
    window = reader.integer("attention.sliding_window", 1, 1 << 31)
    if window >= max_positions and not isinstance(family.gguf_windows, int):
        return ()  # no position is beyond it; in other families the layers with a window have another rotation
    pattern = reader.metadata.get(f"{reader.prefix}.attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray) and pattern.shape == (n_layers,):
        return tuple(window if here else None for here in pattern.tolist())
    if pattern is not None or family.gguf_windows == "pattern":
        raise reader.fail("the file does not say in a known way which layers have a sliding window")
    every = family.gguf_windows if isinstance(family.gguf_windows, int) else n_layers + 1
    return tuple(None if (i + 1) % every == 0 else window for i in range(n_layers))


def read_config(path: Path, header: GgufHeader) -> DecoderConfig:
    """The decoder that the metadata describes.

    Raises:
        RescoldoError: an unsupported architecture, or a value that is missing or impossible.
    """
    architecture = scalar(header.metadata, "general.architecture", str(path))
    reader = _Reader(path, header, str(architecture))
    family = family_of_gguf(architecture)
    if family is None:
        raise reader.fail(
            unsupported(architecture) if architecture else "general.architecture is missing",
            fix=f"use a model of one of these: {', '.join(FAMILIES)}",
        )
    if scalar(header.metadata, "split.count", str(path)) not in (None, 0, 1):
        raise reader.fail(
            "this is one part of a split GGUF",
            fix="join the parts: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf",
        )
    if reader.get("expert_count") not in (None, 0):
        raise reader.fail("mixtures of experts are not supported", fix="use a dense model")
    for key, value in family.gguf_refused.items():
        if reader.get(key) == value:
            raise reader.fail(f"metadata key {reader.prefix}.{key} is {value}, which is not supported")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise reader.fail("there is no tensor token_embd.weight: expected a language model's weights")
    n_layers, d = reader.integer("block_count", 1, 1000), reader.integer("embedding_length", 1, 1 << 20)
    n_heads = reader.integer("attention.head_count", 1, 1 << 14)
    n_kv_heads = reader.integer("attention.head_count_kv", 1, 1 << 14, n_heads)
    head_dim = reader.integer("attention.key_length", 2, 1 << 14, max(d // n_heads, 2))
    if n_heads % n_kv_heads or head_dim % 2:
        raise reader.fail(f"{n_heads} heads, {n_kv_heads} key-value heads and head size {head_dim} do not fit together")
    if reader.integer("attention.value_length", 2, 1 << 14, head_dim) != head_dim:
        raise reader.fail("keys and values of different sizes are not supported")
    rotary_dim = reader.integer("rope.dimension_count", 1, 1 << 14, head_dim)
    if rotary_dim != head_dim and not (family.partial_rope and rotary_dim < head_dim and rotary_dim % 2 == 0):
        raise reader.fail(f"RoPE over {rotary_dim} of a head's {head_dim} elements is not supported")
    max_positions = reader.integer("context_length", 1, 1 << 30)
    scaling = _rope_scaling(reader, header, rotary_dim, max_positions)
    max_positions = short_context(scaling, max_positions)
    several = "feed_forward_length" in family.gguf_by_layer
    widths = reader.integers("feed_forward_length", 1, 1 << 22, n_layers) if several else []
    fields: dict[str, Any] = {
        "architecture": family.name,
        "vocab_size": embedding.shape[0],
        "hidden_size": d,
        "intermediate_size": widths[0] if widths else reader.integer("feed_forward_length", 1, 1 << 22),
        "intermediate_sizes": tuple(widths) if len(set(widths)) > 1 else (),
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": reader.number("rope.freq_base", 10000.0),
        "max_positions": max_positions,
        "rope_scaling": scaling,
        "rotary_dim": None if rotary_dim == head_dim else rotary_dim,
        "windows": _windows(family, reader, n_layers, max_positions),
        "qkv_bias": "blk.0.attn_q.bias" in header.tensors,
        "o_bias": "blk.0.attn_output.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
        "tied_embeddings": "output.weight" not in header.tensors,
    }
    said = {
        name: reader.number(key.gguf)
        for name, key in family.keys.items()
        if key.gguf and reader.get(key.gguf) is not None
    }
    biases = {name: fields[name] for name in ("qkv_bias", "o_bias", "mlp_bias")}
    found = {**fields, **family.fixed, **biases}
    beta = "attention.temperature_scale"
    temperature = reader.number(beta) if reader.get(beta) not in (None, 0) else None
    more = {key: None if reader.get(key) is None else reader.integer(key, 0, 1 << 24) for key in family.gguf_integers}
    try:
        derived = family.derive_gguf({**found, **more, "attention_temperature": temperature})
    except ValueError as error:
        raise reader.fail(str(error)) from None
    if temperature and "query_growth" not in derived:
        raise reader.fail(f"metadata key {reader.prefix}.{beta} is not supported for this architecture")
    return DecoderConfig(**{**found, **derived, **said})
