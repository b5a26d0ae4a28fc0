"""Mistral 7B and its successors: Llama's decoder, the first version with sliding windows. GGUF calls it llama."""

from rescoldo.families.family import Family

FAMILY = Family("mistral", gguf="llama", hf_class="MistralForCausalLM", windows="all", interleaved_rope=True)
