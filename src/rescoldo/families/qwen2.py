"""Qwen 2 and 2.5: biases on q, k and v, windows on the upper layers."""

from rescoldo.families.family import Family

FAMILY = Family(
    "qwen2",
    gguf="qwen2",
    hf_class="Qwen2ForCausalLM",
    fixed={"qkv_bias": True},
    windows="layer_types",
    gguf_windows="pattern",
)
