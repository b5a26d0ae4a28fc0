"""What every kind of base model looks like to the rest of the program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rescoldo.engine.config import DecoderConfig


class TensorSource(ABC):
    """The weights of a base model under Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`, …)."""

    @abstractmethod
    def names(self) -> list[str]:
        """All tensor names, in file order."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape as PyTorch sees it: (out_features, in_features) for a linear's weight."""

    @abstractmethod
    def get(self, name: str) -> torch.Tensor:
        """The tensor, mapped from the file and in its stored dtype where that is a plain one (read-only: never write
        into it), decoded to float32 where it is quantized.

        Raises:
            RescoldoError: no such tensor, or the file is damaged.
        """


@dataclass(frozen=True)
class BaseModel:
    """An opened base model. Opening reads headers only; tensors are mapped when asked for.

    Attributes:
        spec: what the user typed ("sample:smollm2", "ollama:mistral:7b-instruct", a path, a Hub id).
        path: the directory or GGUF file it stands for.
        kind: "hf" or "gguf".
        config: the decoder's shapes.
        tensors: the weights.
        preset: hyper-parameters that suit this model where the user gives none (only the sample has any).
    """

    spec: str
    path: Path
    kind: str
    config: DecoderConfig
    tensors: TensorSource
    preset: str | None = None

    def tokenizer(self) -> Any:
        """The model's own tokenizer (a transformers fast tokenizer) with its chat template."""
        from rescoldo.base.tokenizer import load_tokenizer

        return load_tokenizer(self)

    def fingerprint(self) -> str:
        """SHA-256 over the weight files' content and the config (hex); computed once per (path, size, mtime), cached."""
        from rescoldo.base.fingerprint import fingerprint

        return fingerprint(self)
