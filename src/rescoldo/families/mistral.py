"""Mistral 7B and its successors: Llama's decoder, in the first version with sliding windows. GGUF calls it llama.
Mistral Small 3 is wrapped together with a vision tower."""

from rescoldo.families.family import Family

VISION = ("vision_tower.", "multi_modal_projector.", "vision_encoder.", "patch_merger.")
FAMILY = Family(
    "mistral",
    gguf="llama",
    hf_class="MistralForCausalLM",
    windows="all",
    interleaved_rope=True,
    wrappers=("mistral3",),
    left_alone=(*VISION, *(f"model.{name}" for name in VISION)),
)
