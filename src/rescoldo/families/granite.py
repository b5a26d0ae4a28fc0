"""Granite 3 and 4.1 (dense): Llama's decoder with four factors."""

from rescoldo.families.family import Family, Key

FAMILY = Family(
    "granite",
    gguf="granite",
    hf_class="GraniteForCausalLM",
    keys={
        "qkv_bias": Key("attention_bias"),
        "o_bias": Key("attention_bias"),
        "mlp_bias": Key("mlp_bias"),
        "embedding_scale": Key("embedding_multiplier", "embedding_scale"),
        "residual_scale": Key("residual_multiplier", "residual_scale"),
        "attention_scale": Key("attention_multiplier", "attention.scale"),
        "logits_divisor": Key("logits_scaling", "logit_scale"),
    },
    interleaved_rope=True,
    gguf_refused={"rope.scaling.finetuned": False},  # no rotary positions at all
)
