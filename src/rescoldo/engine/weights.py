"""Where weights come from: what the engine asks of an opened base model. The package `base` has the implementations."""

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
        """The tensor's shape as PyTorch sees it: (out_features, in_features) for a linear's weight."""

    @abstractmethod
    def get(self, name: str) -> torch.Tensor:
        """The tensor, mapped from the file and in its stored dtype where that is a plain one (read-only: never write
        into it), decoded to float32 where it is quantized.

        Raises:
            RescoldoError: no such tensor, or the file is damaged.
        """

    def quantized(self, name: str) -> QuantizedMatrix | None:
        """The matrix as the file stores it, mapped, where that is in blocks (Q4_K, Q8_0 …); None elsewhere."""
        return None

    def decoded(self, name: str) -> bool:
        """Whether `get` computes the tensor from a quantized form that is not `quantized`'s blocks."""
        return False

    def release(self) -> None:  # noqa: B027 (nothing to do where nothing is mapped)
        """Unmap the files, so that what was read of them no longer counts as this process's memory; they are mapped
        again when the next tensor is asked for. Tensors that are still in use keep their own mapping."""


class OpenedModel(Protocol):
    """What `LoraModel.load` uses of `base.BaseModel`."""

    @property
    def config(self) -> DecoderConfig:
        """The decoder's shapes."""

    @property
    def tensors(self) -> TensorSource:
        """The weights."""

    def stored_bytes(self) -> int | None:
        """Bytes of the layers' linears where the file has all of them in blocks that products take as they are."""

    def fingerprint(self) -> str:
        """SHA-256 over weights and config, in hexadecimal."""
