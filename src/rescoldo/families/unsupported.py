"""Well-known architectures that are not supported, and the parts that the engine cannot compute."""

from __future__ import annotations

_EXPERTS = "a mixture of experts"
_DELTA_NET = "layers with linear attention (Gated DeltaNet)"
_GRANITE_HYBRID = "layers with a state space (Mamba), experts, or an MLP stored as a shared expert"
# by model_type in config.json and by general.architecture in GGUF, without "_", "-" and a wrapper's "_text"
_NEEDS = {
    "gemma3n": "keys and values shared between layers, an embedding for each layer, AltUp and LAuReL",
    "qwen35": _DELTA_NET,
    "qwen3next": f"{_DELTA_NET} and {_EXPERTS}",
    "qwen35moe": f"{_DELTA_NET} and {_EXPERTS}",
    "qwen2moe": _EXPERTS,
    "qwen3moe": _EXPERTS,
    "gptoss": f"{_EXPERTS} and attention sinks",
    "mixtral": _EXPERTS,
    "olmoe": _EXPERTS,
    "phimoe": _EXPERTS,
    "granitemoe": _EXPERTS,
    "granitemoehybrid": _GRANITE_HYBRID,
    "granitehybrid": _GRANITE_HYBRID,
    "deepseek2": f"latent attention and {_EXPERTS}",
    "deepseekv2": f"latent attention and {_EXPERTS}",
    "deepseekv3": f"latent attention and {_EXPERTS}",
    "llama4": f"{_EXPERTS} and chunked attention",
    "mamba": "layers with a state space (Mamba)",
}


def unsupported(architecture: object) -> str:
    """The message about an unsupported `model_type` (config.json) or `general.architecture` (GGUF)."""
    plain = str(architecture).removesuffix("_text").replace("_", "").replace("-", "")
    needs = _NEEDS.get(plain)
    what = f"architecture {architecture!r:.80} is not supported"
    return f"{what}: it has {needs}, which the engine cannot compute" if needs else what
