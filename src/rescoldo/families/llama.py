"""Llama 2 and 3, SmolLM2, and the many models with the same decoder."""

from rescoldo.families.family import Family, Key

FAMILY = Family(
    "llama",
    gguf="llama",
    hf_class="LlamaForCausalLM",
    keys={"qkv_bias": Key("attention_bias"), "o_bias": Key("attention_bias"), "mlp_bias": Key("mlp_bias")},
    hf_family=lambda config: "mistral" if config.windows else "",
    interleaved_rope=True,
)
