"""Gemma 2: Gemma with norms on both sides of a sublayer, a sliding window on every other layer, and soft-capped scores
and logits."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rescoldo.families import gemma3
from rescoldo.families.family import Key

_LAYERS_OF_27B = 46  # the only size whose scores are not divided by the square root of the head size


def _derive_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    of_27b = fields["n_layers"] == _LAYERS_OF_27B
    return {
        "embedding_scale": math.sqrt(fields["hidden_size"]),
        "attention_scale": float(fields["hidden_size"] // fields["n_heads"] if of_27b else fields["head_dim"]) ** -0.5,
        "attention_cap": 50.0,
        "logits_cap": 30.0,
    }


FAMILY = replace(
    gemma3.FAMILY,
    name="gemma2",
    gguf="gemma2",
    hf_class="Gemma2ForCausalLM",
    fixed={"norm_placement": "sandwich", "activation": "gelu_tanh"},
    keys={
        "qkv_bias": Key("attention_bias"),
        "o_bias": Key("attention_bias"),
        "attention_cap": Key("attn_logit_softcapping", "attn_logit_softcapping"),
        "logits_cap": Key("final_logit_softcapping", "final_logit_softcapping"),
    },
    gguf_windows=2,
    wrappers=(),
    left_alone=(),
    derive_gguf=_derive_gguf,
)
