"""OLMo 3: OLMo 2 with sliding windows."""

from dataclasses import replace

from rescoldo.families import olmo2

FAMILY = replace(
    olmo2.FAMILY, name="olmo3", hf_class="Olmo3ForCausalLM", windows="layer_types", hf_family=lambda config: ""
)
