"""A GGUF file as a base model: its tensors under Hugging Face's names, mapped and decoded."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rescoldo.base.gguf_config import read_config
from rescoldo.base.gguf_header import GgufHeader, TensorInfo, read_header
from rescoldo.base.model import BaseModel, check_tensors
from rescoldo.base.tokenizer import GgufTokenizer, end_ids
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.blocks import KINDS, QuantizedMatrix, decode_ggml
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.rope_scaling import LIST_TENSORS
from rescoldo.engine.weights import TensorSource
from rescoldo.errors import RescoldoError
from rescoldo.families import FAMILIES

_PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<i2")}


def gguf_name(config: DecoderConfig, name: str) -> str:
    """GGUF's name for a decoder's tensor ("model.layers.3.mlp.up_proj.weight" → "blk.3.ffn_up.weight").

    Raises:
        KeyError: there is none.
    """
    return FAMILIES[config.architecture].to_gguf(name)


def permuted_rows(config: DecoderConfig, name: str) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """For each row in llama.cpp's order, its index in the Hugging Face tensor `name`; None if the orders are the
    same."""
    rows = _stored_rows(config, name)
    return None if rows is None else np.argsort(rows)


def _stored_rows(config: DecoderConfig, name: str) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """For each row of the Hugging Face tensor `name`, its index in llama.cpp's order; None if the orders are the
    same."""
    heads = FAMILIES[config.architecture].rotary_heads(config, name)
    return None if heads is None else _unpermuted_rows(heads * config.head_dim, heads)


def _unpermuted_rows(n_rows: int, n_heads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each row of q or k, its index in llama.cpp's order, which stores a head's rotary pairs (i, i + dim/2)
    adjacently."""
    stored = np.arange(n_rows, dtype=np.int64).reshape(n_heads, n_rows // n_heads // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


class GgufTensors(TensorSource):
    """Mapped tensors of a GGUF file, decoded by the gguf package if they are quantized."""

    def __init__(self, path: Path, header: GgufHeader, config: DecoderConfig) -> None:
        self.path = path
        self._config = config
        self._infos: dict[str, TensorInfo] = {}
        for info in header.tensors.values():
            name = FAMILIES[config.architecture].from_gguf(info.name)
            if name in config.unused_tensors:
                continue
            if name is not None:
                self._infos[name] = info
            elif info.name not in LIST_TENSORS:
                self._infos[info.name] = info  # unknown tensor: check_tensors refuses it by name

    @cached_property
    def _data(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.memmap(self.path, dtype=np.uint8, mode="c")  # copy on write: torch requires writable memory

    def names(self) -> list[str]:
        return list(self._infos)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._infos[name].shape

    def release(self) -> None:
        self.__dict__.pop("_data", None)

    def _info(self, name: str) -> TensorInfo:
        info = self._infos.get(name)
        if info is None:
            raise RescoldoError(f"there is no tensor {name}", where=str(self.path))
        return info

    def _bytes(self, info: TensorInfo) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self._data[info.offset : info.offset + info.n_bytes]

    def get(self, name: str) -> torch.Tensor:
        blocks = self.quantized(name)
        if blocks is not None and blocks.kind in KINDS:
            return kernels().blocks_decode([blocks])
        info, rows = self._info(name), _stored_rows(self._config, name)
        raw = self._bytes(info)
        if info.type_name in _PLAIN:
            array = raw.view(_PLAIN[info.type_name])
            if not array.flags.aligned:
                array = array.copy()
            tensor = torch.from_numpy(np.asarray(array)).reshape(info.shape)
            if info.type_name == "BF16":
                tensor = tensor.view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(decode_ggml(np.asarray(raw), info.type_name)).reshape(info.shape)
        return tensor if rows is None else tensor[torch.from_numpy(rows)]

    def quantized(self, name: str) -> QuantizedMatrix | None:
        info = self._info(name)
        if info.type_name in _PLAIN or len(info.shape) != 2:
            return None
        data = torch.from_numpy(np.asarray(self._bytes(info))).view(info.shape[0], -1)
        rows = _stored_rows(self._config, name)
        order = None if rows is None else torch.from_numpy(rows)
        return QuantizedMatrix(info.type_name, data, (info.shape[0], info.shape[1]), order=order)


class GgufModel(BaseModel):
    """A GGUF file from any source."""

    @property
    def gguf_file(self) -> Path:
        return self.path


def _check_types(path: Path, header: GgufHeader) -> None:
    if all(info.type_name in (*_PLAIN, *KINDS) for info in header.tensors.values()):
        return  # decoded here
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import _type_traits

    for info in header.tensors.values():
        if info.type_name not in ("F32", "F16") and GGMLQuantizationType[info.type_name] not in _type_traits:
            known = ", ".join(["F32", "F16", *(kind.name for kind in _type_traits)])
            raise RescoldoError(
                f"tensor {info.name} is stored as {info.type_name}, which cannot be decoded",
                where=str(path),
                fix=f"use a file in one of: {known}",
            )


def open_gguf(path: Path, spec: str, *, ollama_name: str | None = None) -> BaseModel:
    """Open a GGUF file; `ollama_name`: see BaseModel.

    Raises:
        RescoldoError: it is not GGUF, damaged, of an unsupported architecture, or its tensors do not fit its metadata.
    """
    header = read_header(path)
    config = read_config(path, header)
    _check_types(path, header)
    tensors = GgufTensors(path, header, config)
    check_tensors(tensors, config, path)
    tokenizer = GgufTokenizer(path, config.max_positions, end_ids(header.metadata, path))
    return GgufModel(spec, path, config, tensors, (path,), tokenizer, ollama_name=ollama_name)
