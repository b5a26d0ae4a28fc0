"""Qwen 3: norms on each head of q and k."""

from rescoldo.families.family import Family, Key

FAMILY = Family(
    "qwen3",
    gguf="qwen3",
    hf_class="Qwen3ForCausalLM",
    fixed={"qk_norm": True},
    keys={"qkv_bias": Key("attention_bias"), "o_bias": Key("attention_bias")},
    windows="layer_types",
    gguf_windows="pattern",
)
