"""Base models from a Hugging Face directory or Hub id, a GGUF file, Ollama's store, or a package."""

from __future__ import annotations

from rescoldo.base.model import BaseModel
from rescoldo.base.open import open_base

__all__ = ["BaseModel", "open_base"]
