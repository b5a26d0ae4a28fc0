"""The table of model families: one row each. A new family is a new file here and its name in `_ROWS`."""

from __future__ import annotations

from rescoldo.families import (
    gemma,
    gemma2,
    gemma3,
    gemma4,
    granite,
    llama,
    ministral3,
    mistral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from rescoldo.families.family import Family, Key

_ROWS = (llama, mistral, ministral3, qwen2, qwen3, granite, olmo2, olmo3, smollm3, phi3, gemma, gemma2, gemma3, gemma4)
FAMILIES: dict[str, Family] = {row.FAMILY.name: row.FAMILY for row in _ROWS}
WRAPPERS: dict[str, tuple[Family, ...]] = {  # the first one is transformers' default
    name: tuple(family for family in FAMILIES.values() if name in family.wrappers)
    for name in {name for family in FAMILIES.values() for name in family.wrappers}
}


def family_of_gguf(architecture: object) -> Family | None:
    """The first family with this name in GGUF."""
    return next((family for family in FAMILIES.values() if family.gguf == architecture), None)


__all__ = ["FAMILIES", "WRAPPERS", "Family", "Key", "family_of_gguf"]
