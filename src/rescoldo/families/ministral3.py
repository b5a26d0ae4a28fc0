"""Ministral 3: Mistral's decoder with YaRN and queries that are scaled up beyond the pretrained context, wrapped
together with a vision tower."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rescoldo.engine.config import DecoderConfig
from rescoldo.families import mistral

_BETA, _CONTEXT = "llama_4_scaling_beta", "original_max_position_embeddings"


def _derive_hf(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    beta, context = rope.get(_BETA), rope.get(_CONTEXT)
    return {"query_growth": (float(beta), int(context)) if beta and context else None}


def _derive_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    beta, scaling = fields["attention_temperature"], fields["rope_scaling"] or {}
    context = scaling.get(_CONTEXT) or fields["max_positions"]
    return {"query_growth": (beta, int(context)) if beta else None}


def _write_hf(config: DecoderConfig) -> dict[str, Any]:
    beta, context = config.query_growth or (0.0, config.max_positions)
    growth = {_BETA: beta, _CONTEXT: context}
    return {"rope_parameters": growth, "rope_scaling": growth}


FAMILY = replace(
    mistral.FAMILY,
    name="ministral3",
    gguf="mistral3",
    hf_class="Ministral3ForCausalLM",
    hf_family=lambda config: "" if config.query_growth else "mistral",
    rope_keys=(_BETA, "max_position_embeddings"),
    derive_hf=_derive_hf,
    derive_gguf=_derive_gguf,
    write_hf=_write_hf,
)
