"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: q, k and v are one linear, gate and up another, also in adapters. Some sizes
have sliding windows, longrope, or rotate only the first part of a head."""

from rescoldo.families.family import Family

FAMILY = Family(
    "phi3",
    gguf="phi3",
    hf_class="Phi3ForCausalLM",
    fixed={"fused": ("qkv", "gate_up")},
    windows="all",
    partial_rope=True,
)
