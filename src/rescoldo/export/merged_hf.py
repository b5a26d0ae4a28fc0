"""Base and adapter merged into a Hugging Face directory: config, tokenizer, chat template, safetensors in shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rescoldo.base.hf import INDEX, HfTensors, open_hf, read_config
from rescoldo.base.model import check_tensors
from rescoldo.base.tokenizer import save_tokenizer
from rescoldo.data.tokenize import stop_ids
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.rope import inverse_frequencies, of_kind
from rescoldo.engine.rope_scaling import NO_SCALING, scaling_of
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.export.dtypes import PLAIN, to_plain
from rescoldo.export.source import Source
from rescoldo.families import FAMILIES, Family
from rescoldo.files import write_json

DTYPES = tuple(PLAIN)
SHARD_BYTES = 1 << 30  # one shard is in memory at a time
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def default_dtype(source: Source) -> str:
    """The base's own dtype; BF16 if it is decoded from FP8 or the like; F16 if it is in GGUF's blocks, whose scales
    have half precision."""
    tensors = source.base.tensors
    name = f"model.layers.0.{source.base.config.members('qkv', 0)[0]}.weight"
    if tensors.decoded(name):
        return "BF16"
    return "F16" if tensors.quantized(name) is not None else _NAMES[tensors.get(name).dtype]


def write_config(source: Source, directory: Path, dtype: str) -> None:
    """Write config.json and generation_config.json: the base's own, or made from the decoder's config.

    Raises:
        RescoldoError: the base has something that a Hugging Face config cannot represent.
    """
    config, tokenizer = source.base.config, source.tokenizer
    generation: dict[str, Any] = {"eos_token_id": sorted(stop_ids(tokenizer)), "do_sample": False}
    own = source.base.hf_config()
    if own is not None:
        content, generation = own[0], generation if own[1] is None else own[1]
    else:
        content = _config(config)
        for name in ("bos", "eos", "pad"):
            content[f"{name}_token_id"] = getattr(tokenizer, f"{name}_token_id")
            generation.setdefault(f"{name}_token_id", content[f"{name}_token_id"])
    content["dtype"] = str(PLAIN[dtype]).removeprefix("torch.")
    write_json(directory / "config.json", content)
    write_json(directory / "generation_config.json", generation)
    if not _alike(read_config(directory), config):
        raise RescoldoError(
            "has a shape that a Hugging Face config cannot express", where=source.base.spec, fix="--to merged-gguf"
        )


def _family(config: DecoderConfig) -> Family:
    """The family of the transformers class: GGUF calls Mistral a llama, but only Mistral's class has sliding
    windows."""
    family = FAMILIES[config.architecture]
    return FAMILIES[family.hf_family(config) or family.name]


def _alike(written: DecoderConfig, meant: DecoderConfig) -> bool:
    """Whether two decoders are the same, with RoPE scalings compared by their effect."""
    for kind in sorted({meant.rope(i) for i in range(meant.n_layers)} - {"none"}):
        speeds = [inverse_frequencies(of_kind(config, kind)) for config in (written, meant)]
        same = torch.allclose(speeds[0][0], speeds[1][0], rtol=1e-5, atol=0) and abs(speeds[0][1] - speeds[1][1]) < 1e-6
        if not same:
            return False
    return replace(written, rope_scaling=None) == replace(meant, rope_scaling=None, architecture=written.architecture)


def _config(config: DecoderConfig) -> dict[str, Any]:
    family = _family(config)
    rope: dict[str, Any] = {"rope_type": NO_SCALING, **(_rope_scaling(config) or {}), "rope_theta": config.rope_theta}
    if config.rotary_dim is not None:
        rope["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    if config.local_rope_theta is not None:
        local = {"rope_type": NO_SCALING, "rope_theta": config.local_rope_theta}
        rope = {"full_attention": rope, "sliding_attention": local}
    content: dict[str, Any] = {
        "architectures": [family.hf_class],
        "model_type": family.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        family.activation_key: _ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.whole_context,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,  # transformers 4 reads these two
        "rope_scaling": _rope_scaling(config),
    }
    content |= {key.hf: getattr(config, field) for field, key in family.keys.items() if key.hf}
    for key, value in family.write_hf(config).items():
        content[key] = {**(content[key] or {}), **value} if isinstance(value, dict) else value
        if value is None:
            del content[key]
    if "partial_rotary_factor" in rope:
        content["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config.rope_scaling is not None and "max_position_embeddings" in config.rope_scaling:
        content["original_max_position_embeddings"] = config.max_positions
    windows = [window for window in config.windows if window is not None]
    content["sliding_window"] = windows[0] if windows else None
    if family.windows == "layer_types":
        content["use_sliding_window"] = bool(windows)
        kinds = {True: "sliding_attention", False: "full_attention"}
        content["layer_types"] = [kinds[config.window(i) is not None] for i in range(config.n_layers)]
    return content


def _rope_scaling(config: DecoderConfig) -> dict[str, Any] | None:
    """The scaling in config.json's format.

    Raises:
        RescoldoError: the format does not support it.
    """
    row, scaling = scaling_of(config)
    return row.to_config(config, scaling) or None


def plan_shards(source: Source, dtype: str) -> list[list[str]]:
    """The tensors' names, in the model's order, grouped by shard."""
    shards: list[list[str]] = []
    room = 0
    for name, shape in source.base.config.tensor_shapes().items():
        size = int(np.prod(shape)) * PLAIN[dtype].itemsize
        if not shards or size > room:
            shards.append([])
            room = max(SHARD_BYTES, size)
        shards[-1].append(name)
        room -= size
    return shards


def total_bytes(source: Source, dtype: str) -> int:
    """The size of the weights on disk, in bytes."""
    return sum(int(np.prod(shape)) for shape in source.base.config.tensor_shapes().values()) * PLAIN[dtype].itemsize


def write_weights(source: Source, directory: Path, dtype: str, on_tensor: Callable[[str], None]) -> None:
    """Write the shards and their index, then read everything again and compare.

    Raises:
        RescoldoError: a value does not fit into `dtype`, or the content on disk differs from what was written.
        OSError: from the system.
    """
    from safetensors.torch import save_file

    shards = plan_shards(source, dtype)
    files: dict[str, str] = {}
    digests: dict[str, bytes] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = dict(_tensors(source, names, dtype, on_tensor))
        digests |= {name: _digest(tensor) for name, tensor in tensors.items()}
        files |= dict.fromkeys(names, file)
        save_file(tensors, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(directory.stat().st_mode & 0o666)  # safetensors makes it readable for the owner only
        del tensors
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_bytes(source, dtype)}, "weight_map": files}
        write_json(directory / INDEX, index)
    written = HfTensors([directory / file for file in dict.fromkeys(files.values())])
    check_tensors(written, source.base.config, directory)
    for name in written.names():
        if _digest(written.get(name)) != digests[name]:
            raise RescoldoError(
                f"{name} does not read back as it was written",
                where=str(directory),
                fix="check the disk, then export again",
                exit_code=EXIT_FAILURE,
            )
        written.release()


def _tensors(
    source: Source, names: list[str], dtype: str, on_tensor: Callable[[str], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        weight = source.merged(name)
        offset = source.base.family.norm_offset
        if offset and name.endswith("norm.weight"):
            weight = weight.float() - offset  # as in the base's file
        stored = to_plain(weight, dtype, name)
        yield name, stored.clone() if stored is weight else stored  # cloned, or the base's file would stay mapped
        del weight, stored
        source.base.tensors.release()
        on_tensor(name)


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()


def write_merged(source: Source, directory: Path, dtype: str, on_tensor: Callable[[str], None]) -> None:
    """Write the whole directory and verify it: it opens as a base model of the same shape and tokenizes identically.

    Raises:
        RescoldoError: see write_config and write_weights.
        OSError: from the system.
    """
    write_config(source, directory, dtype)
    save_tokenizer(source.tokenizer, directory)
    write_weights(source, directory, dtype, on_tensor)
    written = open_hf(directory, str(directory)).tokenizer()
    text = "Ein Werkzeugverleih, 24 h:\n- ¿qué más?\n  漢字" + source.tokenizer.chat_template
    if written(text)["input_ids"] != source.tokenizer(text)["input_ids"]:
        raise RescoldoError(
            "the tokenizer does not read back as it was written", where=str(directory), exit_code=EXIT_FAILURE
        )
