"""Export of a trained adapter: llama.cpp's LoRA format, Ollama, merged weights for transformers or as GGUF."""

from __future__ import annotations

from rescoldo.export.export import KINDS, export_run

__all__ = ["KINDS", "export_run"]
