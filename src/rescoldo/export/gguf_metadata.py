"""Metadata of a merged GGUF: the base file's own, or else made from the Hugging Face config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from rescoldo.base.gguf_header import read_header
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.rope import of_kind
from rescoldo.engine.rope_scaling import scaling_of
from rescoldo.errors import RescoldoError
from rescoldo.export.gguf_file import Value
from rescoldo.export.gguf_tokenizer import tokenizer_metadata
from rescoldo.export.source import Source
from rescoldo.families import Family

_STRING, _UINT32, _INT32, _FLOAT32, _BOOL, _ARRAY = 8, 4, 5, 6, 7, 9  # GGUF's type numbers
_NOT_CARRIED = (
    "general.file_type", "general.quantization_version", "split.", "quantize.",
    "general.quantized_by", "general.source.", "general.base_model.",
)  # fmt: skip
_OF_THE_BASE = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # llama.cpp's general.file_type
_QUANTIZATION_VERSION = 2


def merged_metadata(source: Source, dtype: str) -> dict[str, Value]:
    """All metadata of the merged file, including the tokenizer.

    Raises:
        RescoldoError: the base has something that GGUF or llama.cpp cannot represent.
    """
    if source.base.gguf_file is not None:
        header = read_header(source.base.gguf_file)
        metadata = {
            key: Value(_plain(value), *header.types[key])
            for key, value in header.metadata.items()
            if not key.startswith(_NOT_CARRIED) and not _is_empty(value)
        }
        if not metadata.get("tokenizer.chat_template"):  # the template is one of this program's
            metadata["tokenizer.chat_template"] = Value(source.tokenizer.chat_template, _STRING)
        metadata |= _named(source, metadata)
        for key in _OF_THE_BASE[1:]:
            metadata.pop(f"general.{key}", None)
    else:
        metadata = {**_model(source), **tokenizer_metadata(source)}
    metadata["general.file_type"] = Value(FILE_TYPES[dtype], _UINT32)
    metadata["general.quantization_version"] = Value(_QUANTIZATION_VERSION, _UINT32)
    return metadata


def _named(source: Source, base: dict[str, Value]) -> dict[str, Value]:
    """The run's name as the model's, and the base's name and origin under general.base_model.0."""
    found = {f"general.base_model.0.{key}": base[f"general.{key}"] for key in _OF_THE_BASE if f"general.{key}" in base}
    return {
        "general.name": Value(source.run.resolve().name, _STRING),
        "general.base_model.count": Value(1, _UINT32),
        "general.base_model.0.name": Value(source.base_name, _STRING),
        **found,
    }


def _plain(value: Any) -> Any:
    """Lists of numbers as Python numbers, which the writer accepts."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _is_empty(value: Any) -> bool:
    return isinstance(value, list | np.ndarray) and len(value) == 0  # GGUF's writer has no empty lists


def _model(source: Source) -> dict[str, Value]:
    config, family = source.base.config, source.base.family
    name = family.gguf
    metadata = {
        "general.architecture": Value(name, _STRING),
        "general.type": Value("model", _STRING),
        **_named(source, {}),
    }
    integers = {
        "block_count": config.n_layers,
        "context_length": config.whole_context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.rotary_dim or config.head_dim,
        "vocab_size": config.vocab_size,
    }
    own = {**integers, **family.write_gguf(config)}
    metadata |= {
        f"{name}.{key}": Value(value, _ARRAY, _UINT32) if isinstance(value, list) else Value(value, _UINT32)
        for key, value in own.items()
    }
    numbers = {"attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": config.rope_theta}
    said = {field: key.gguf for field, key in family.keys.items() if key.gguf and getattr(config, field) is not None}
    numbers |= {key: getattr(config, field) for field, key in said.items()}
    temperature = config.query_growth[0] if config.query_growth else None
    if temperature:
        numbers["attention.temperature_scale"] = temperature
    fields = {**dict.fromkeys(family.gguf_integers), **asdict(config), **own, "attention_temperature": temperature}
    for field, value in family.derive_gguf(fields).items():
        if field not in said and getattr(config, field) != value:
            raise RescoldoError(f"GGUF cannot represent {field}={getattr(config, field)}", fix="--to merged")
    metadata |= {f"{name}.{key}": _float(value) for key, value in numbers.items()}
    metadata |= {f"{name}.{key}": value for key, value in {**_windows(family, config), **_scaling(config)}.items()}
    return metadata


def _float(value: float) -> Value:
    return Value(float(np.float32(value)), _FLOAT32)


def _windows(family: Family, config: DecoderConfig) -> dict[str, Value]:
    """Sliding windows. For these architectures llama.cpp ignores them and uses full attention; this program's engine
    reads them."""
    sizes = {window for window in config.windows if window is not None}
    if not sizes:
        return {}
    pattern = [window is not None for window in config.windows]
    if isinstance(family.gguf_windows, int):
        if pattern != [(i + 1) % family.gguf_windows != 0 for i in range(config.n_layers)]:
            raise RescoldoError("GGUF cannot represent this order of sliding windows", fix="--to merged")
        return {"attention.sliding_window": Value(sizes.pop(), _UINT32)}
    found = {"attention.sliding_window": Value(sizes.pop(), _UINT32)}
    if family.windows == "layer_types" or not all(pattern):
        found["attention.sliding_window_pattern"] = Value(pattern, _ARRAY, _BOOL)
    return found


def _scaling(config: DecoderConfig) -> dict[str, Value]:
    row, scaling = scaling_of(config)
    return {key: _value(value) for key, value in row.write_gguf(config, scaling).items()}


def _value(value: str | int | float) -> Value:
    if isinstance(value, str):
        return Value(value, _STRING)
    return Value(value, _UINT32) if isinstance(value, int) else _float(value)


def rope_factors(source: Source) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The divisors of the base's inverse frequencies, (rotary_dim / 2,), as GGUF tensors."""
    row, scaling = scaling_of(source.base.config)
    lists = row.write_lists(of_kind(source.base.config, "main"), scaling)
    return {name: np.asarray(divisors, np.float32) for name, divisors in lists.items()}
