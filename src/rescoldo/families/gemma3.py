"""Gemma 3: Gemma with norms on both sides of a sublayer and on each head of q and k, five layers with a sliding window
for one without, and a separate rotation for each kind. From 4B on it is wrapped together with a vision tower."""

import math
from collections.abc import Mapping
from typing import Any

from rescoldo.engine.config import DecoderConfig
from rescoldo.families.family import Family, Key

_LAYERS_OF_27B = 62  # the only size whose scores are not divided by the square root of the head size


def _derive_hf(config: Any) -> dict[str, Any]:
    return {
        "embedding_scale": math.sqrt(config.hidden_size),
        "attention_scale": float(config.query_pre_attn_scalar) ** -0.5,
    }


def _derive_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    of_27b = fields["n_layers"] == _LAYERS_OF_27B
    return {
        "embedding_scale": math.sqrt(fields["hidden_size"]),
        "attention_scale": float(fields["hidden_size"] // fields["n_heads"] if of_27b else fields["head_dim"]) ** -0.5,
        "local_rope_theta": 10000.0,
    }


def _write_hf(config: DecoderConfig) -> dict[str, Any]:
    return {"query_pre_attn_scalar": round((config.attention_scale or 1.0) ** -2)}


FAMILY = Family(
    "gemma3_text",
    gguf="gemma3",
    hf_class="Gemma3ForCausalLM",
    fixed={"norm_placement": "sandwich", "qk_norm": True, "activation": "gelu_tanh"},
    keys={
        "qkv_bias": Key("attention_bias"),
        "o_bias": Key("attention_bias"),
        "local_rope_theta": Key(gguf="rope.freq_base_swa"),
        "attention_cap": Key("attn_logit_softcapping", "attn_logit_softcapping"),
        "logits_cap": Key("final_logit_softcapping", "final_logit_softcapping"),
    },
    windows="layer_types",
    gguf_windows=6,
    norm_offset=1.0,
    activation_key="hidden_activation",
    wrappers=("gemma3",),
    left_alone=("model.vision_tower.", "model.multi_modal_projector.", "vision_tower.", "multi_modal_projector."),
    refused={"use_bidirectional_attention": (True, "attention to later tokens")},
    derive_hf=_derive_hf,
    derive_gguf=_derive_gguf,
    write_hf=_write_hf,
)
