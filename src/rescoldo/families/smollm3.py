"""SmolLM3: Llama's decoder, every fourth layer without rotary positions."""

from collections.abc import Mapping
from typing import Any

from rescoldo.engine.config import DecoderConfig
from rescoldo.families.family import Family, Key


def _derive_hf(config: Any) -> dict[str, Any]:
    return {"no_rope": tuple(i for i, rotated in enumerate(config.no_rope_layers) if not rotated)}


def _derive_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"no_rope": tuple(range(3, fields["n_layers"], 4))}


def _write_hf(config: DecoderConfig) -> dict[str, Any]:
    return {"no_rope_layers": [int(i not in config.no_rope) for i in range(config.n_layers)]}


FAMILY = Family(
    "smollm3",
    gguf="smollm3",
    hf_class="SmolLM3ForCausalLM",
    keys={"qkv_bias": Key("attention_bias"), "o_bias": Key("attention_bias"), "mlp_bias": Key("mlp_bias")},
    windows="layer_types",
    gguf_windows="pattern",
    interleaved_rope=True,
    derive_hf=_derive_hf,
    derive_gguf=_derive_gguf,
    write_hf=_write_hf,
)
