"""Gemma 4 E2B and E4B: Gemma 3 with another head size in layers with full attention, last layers that attend to keys
and values of earlier ones, and embeddings for each layer. Wrapped together with towers for images and sound."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.rope_scaling import UNROTATED
from rescoldo.families.family import Family, Key

_SHARED, _INPUTS = "attention.shared_kv_layers", "embedding_length_per_layer_input"
_HEAD, _LOCAL_HEAD = "attention.key_length", "attention.key_length_swa"
_LOCAL_VALUES, _LOCAL_ROTATED = "attention.value_length_swa", "rope.dimension_count_swa"


def _kv_sources(full: Sequence[bool], n_shared: int) -> tuple[int, ...]:
    """For each layer, the layer whose keys and values it attends to: for the last `n_shared` layers the latest earlier
    one of the same kind (`full` attention, or with a window), for the others the layer itself.

    Raises:
        ValueError: there is none.
    """
    if not n_shared:
        return ()
    first = len(full) - n_shared
    own = {kind: i for i, kind in enumerate(full[: max(0, first)])}
    if not own.keys() >= set(full):
        raise ValueError(f"the last {n_shared} of {len(full)} layers share keys and values that no earlier layer has")
    return (*range(first), *(own[kind] for kind in full[first:]))


def _heads(full: Sequence[bool], sizes: Sequence[int]) -> dict[str, Any]:
    """The fields for the layers' head sizes.

    Raises:
        ValueError: layers of one kind have different sizes, or a size is odd.
    """
    kinds = {kind: {size for size, one in zip(sizes, full, strict=True) if one == kind} for kind in set(full)}
    if any(len(several) > 1 for several in kinds.values()) or any(size < 2 or size % 2 for size in sizes):
        raise ValueError("head sizes must be even, and the same in all layers with a window and in all without")
    return {"head_dim": sizes[0], "head_dims": tuple(sizes) if len(set(sizes)) > 1 else ()}


def _derive_hf(config: Any) -> dict[str, Any]:
    full = [kind == "full_attention" for kind in config.layer_types]
    if config.hidden_size_per_layer_input and config.vocab_size_per_layer_input != config.vocab_size:
        raise ValueError("vocab_size_per_layer_input is not vocab_size: every token needs a row in both tables")
    local = (config.rope_parameters.get("sliding_attention") or {}).get("rope_theta", 0.0)
    width, first = config.intermediate_size, len(full) - config.num_kv_shared_layers
    wide = config.use_double_wide_mlp and first < len(full)
    return {
        **_heads(full, [config.per_layer_config[i].head_dim for i in range(len(full))]),
        "embedding_scale": math.sqrt(config.hidden_size),
        "intermediate_sizes": tuple(width * (1 if i < first else 2) for i in range(len(full))) if wide else (),
        "kv_sources": _kv_sources(full, config.num_kv_shared_layers),
        "layer_input_dim": config.hidden_size_per_layer_input or 0,
        "local_rope_theta": None if all(full) else float(local),
    }


def _derive_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    full = [window is None for window in fields["windows"]] or [True] * fields["n_layers"]
    local = fields[_LOCAL_HEAD] or fields[_HEAD]
    if (fields[_LOCAL_ROTATED] or local) != local:
        raise ValueError(f"RoPE over {fields[_LOCAL_ROTATED]} of {local} elements of the layers with a window")
    return {
        **_heads(full, [fields[_HEAD] if kind else local for kind in full]),
        "embedding_scale": math.sqrt(fields["hidden_size"]),
        "kv_sources": _kv_sources(full, fields[_SHARED] or 0),
        "layer_input_dim": fields[_INPUTS] or 0,
        "local_rope_theta": None if all(full) else 10000.0,
        "rope_scaling": _proportional(fields["rope_scaling"]),
    }


def _proportional(scaling: Mapping[str, Any] | None) -> Any:
    """A GGUF file's list of divisors as Hugging Face's parameters, if it shows which part of a head is rotated."""
    factors = (scaling or {}).get("factors", [])
    rotated = [factor for factor in factors if factor < UNROTATED / 2]
    if not rotated or len(set(rotated)) > 1 or factors[: len(rotated)] != rotated:
        return scaling
    share = len(rotated) / len(factors)
    return {"rope_type": "proportional", "partial_rotary_factor": share, "factor": rotated[0]}


def _head_of(config: DecoderConfig, *, window: bool) -> int:
    sizes = (config.head_size(i) for i in range(config.n_layers) if (config.window(i) is not None) == window)
    return next(sizes, config.head_dim)


def _write_hf(config: DecoderConfig) -> dict[str, Any]:
    shared = config.n_layers - len(config.kv_layers)
    return {
        "head_dim": _head_of(config, window=True),
        "global_head_dim": _head_of(config, window=False),
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": bool(config.intermediate_sizes),
        "hidden_size_per_layer_input": config.layer_input_dim,
        "vocab_size_per_layer_input": config.vocab_size,
        **dict.fromkeys(("rope_theta", "rope_scaling")),  # stored for each kind of layer instead
    }


def _write_gguf(config: DecoderConfig) -> dict[str, int | list[int]]:
    full, local = _head_of(config, window=False), _head_of(config, window=True)
    return {
        **{_HEAD: full, "attention.value_length": full, "rope.dimension_count": full},
        **{_LOCAL_HEAD: local, _LOCAL_VALUES: local, _LOCAL_ROTATED: local},
        _SHARED: config.n_layers - len(config.kv_layers),
        _INPUTS: config.layer_input_dim,
        "feed_forward_length": list(config.intermediate_sizes) or config.intermediate_size,
    }


FAMILY = Family(
    "gemma4_text",
    gguf="gemma4",
    hf_class="Gemma4ForCausalLM",
    gguf_merges=True,
    fixed={
        "norm_placement": "sandwich",
        "qk_norm": True,
        "v_norm": True,
        "activation": "gelu_tanh",
        "attention_scale": 1.0,
        "layer_scalar": True,
    },
    keys={
        "qkv_bias": Key("attention_bias"),
        "o_bias": Key("attention_bias"),
        "local_rope_theta": Key(gguf="rope.freq_base_swa"),
        "logits_cap": Key("final_logit_softcapping", "final_logit_softcapping"),
    },
    windows="layer_types",
    gguf_windows="pattern",
    activation_key="hidden_activation",
    by_layer=("head_dim",),
    gguf_by_layer=("feed_forward_length",),
    gguf_integers=(_HEAD, _LOCAL_HEAD, _LOCAL_VALUES, _LOCAL_ROTATED, _SHARED, _INPUTS),
    wrappers=("gemma4",),
    left_alone=tuple(
        f"{wrapper}{part}."
        for wrapper in ("model.", "")
        for part in ("vision_tower", "audio_tower", "embed_vision", "embed_audio")
    ),
    refused={
        "use_bidirectional_attention": ("all", "attention to later tokens"),
        "enable_moe_block": (True, "a mixture of experts, as in 26B-A4B"),
        "attention_k_eq_v": (True, "values that are the keys, as in 31B"),
    },
    derive_hf=_derive_hf,
    derive_gguf=_derive_gguf,
    write_hf=_write_hf,
    write_gguf=_write_gguf,
)
