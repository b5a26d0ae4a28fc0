"""OLMo 2: norms behind the sublayers instead of before them, q and k normalized over their full width."""

from rescoldo.families.family import Family, Key

FAMILY = Family(
    "olmo2",
    gguf="olmo2",
    hf_class="Olmo2ForCausalLM",
    fixed={"norm_placement": "post", "qk_norm": True, "qk_norm_full": True},
    keys={"qkv_bias": Key("attention_bias"), "o_bias": Key("attention_bias")},
)
