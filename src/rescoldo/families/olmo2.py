"""OLMo 2: norms after the sublayers instead of before them, q and k normalized over their full width. OLMo 3, which
GGUF also calls olmo2, has sliding windows on three of four layers, whose rotation has no scaling."""

from collections.abc import Mapping
from typing import Any

from rescoldo.families.family import Family, Key


def _derive_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"local_rope_theta": fields["rope_theta"] if fields["windows"] and fields["rope_scaling"] else None}


FIXED = {"norm_placement": "post", "qk_norm": True, "qk_norm_full": True}
KEYS = {"qkv_bias": Key("attention_bias"), "o_bias": Key("attention_bias")}
FAMILY = Family(
    "olmo2",
    gguf="olmo2",
    hf_class="Olmo2ForCausalLM",
    fixed=FIXED,
    keys=KEYS,
    gguf_windows=4,
    hf_family=lambda config: "olmo3" if config.windows else "",
    derive_gguf=_derive_gguf,
)
