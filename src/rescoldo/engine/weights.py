"""The interface between the engine and an opened base model. The package `base` has the implementations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.blocks import QuantizedMatrix

Tensors = dict[str, torch.Tensor]


class TensorSource(ABC):
    """The weights of a base model under Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`, …)."""

    @abstractmethod
    def names(self) -> list[str]:
        """All tensor names, in file order."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in PyTorch's order: (out_features, in_features) for a linear's weight."""

    @abstractmethod
    def get(self, name: str) -> torch.Tensor:
        """The tensor: mapped from the file in its stored dtype if it is dense (read-only: never write into it), decoded
        to float32 if it is quantized.

        Raises:
            RescoldoError: there is no such tensor, or the file is damaged.
        """

    def quantized(self, name: str) -> QuantizedMatrix | None:
        """The matrix as stored in the file, mapped, if it is in blocks (Q4_K, Q8_0 …); else None."""
        return None

    def decoded(self, name: str) -> bool:
        """Whether `get` decodes the tensor from a quantized format other than `quantized`'s blocks."""
        return False

    def release(self) -> None:  # noqa: B027 (does nothing if nothing is mapped)
        """Unmap the files, so that the pages read no longer count as this process's memory; they are mapped again when
        the next tensor is used. Tensors that are still in use keep their own mapping."""


class OpenedModel(Protocol):
    """The part of `base.BaseModel` that `LoraModel.load` uses."""

    @property
    def config(self) -> DecoderConfig:
        """The decoder's shapes."""

    @property
    def tensors(self) -> TensorSource:
        """The weights."""

    def stored_bytes(self) -> int | None:
        """Bytes of the layers' linears if the file has all of them in blocks that products use directly; else None."""

    def fingerprint(self) -> str:
        """SHA-256 over weights and config, in hexadecimal."""
