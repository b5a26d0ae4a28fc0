"""Gemma: norms that multiply by 1 + w, GELU, and embeddings times the square root of their width."""

import math
from collections.abc import Mapping
from typing import Any

from rescoldo.families.family import Family, Key


def _derive_hf(config: Any) -> dict[str, Any]:
    return {"embedding_scale": math.sqrt(config.hidden_size)}


def _derive_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"embedding_scale": math.sqrt(fields["hidden_size"])}


FAMILY = Family(
    "gemma",
    gguf="gemma",
    hf_class="GemmaForCausalLM",
    fixed={"activation": "gelu_tanh"},
    keys={"qkv_bias": Key("attention_bias"), "o_bias": Key("attention_bias")},
    norm_offset=1.0,
    refused={"use_bidirectional_attention": (True, "attention to later tokens")},
    derive_hf=_derive_hf,
    derive_gguf=_derive_gguf,
)
