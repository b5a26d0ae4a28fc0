"""The adapter on disk, in PEFT's format. Keys there: base_model.model.<module>.lora_A.weight, float32."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from rescoldo.engine.config import ALL_LINEARS
from rescoldo.engine.types import LoraConfig
from rescoldo.engine.weights import Tensors
from rescoldo.errors import RescoldoError
from rescoldo.files import write_atomic, write_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BIN_FILE = "adapter_model.bin"
MAX_CONFIG_BYTES = 1 << 20
UNSUPPORTED = (  # fields of PEFT's config that change what the weights mean
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "rank_pattern"),
    *("alpha_pattern", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"),
)

_PREFIX = "base_model.model."
_KEY = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+)\.lora_[AB]")
_PLAIN, _WRAPPED = "model.layers.", "model.language_model.layers."
# the decoder's linears alone: a vision tower may have some of the same names
_WRAPPED_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\."


@dataclass(frozen=True)
class Adapter:
    """An adapter read from disk: `parameters` as LoraModel names them, `base_model` as the config names it."""

    lora: LoraConfig
    parameters: Tensors
    base_model: str


def peft_config(lora: LoraConfig, base_model: str, *, wrapped: bool = False) -> dict[str, Any]:
    """adapter_config.json's content: what peft.LoraConfig would write, without the fields that are at their default
    there (PEFT fills them, whatever its version). PEFT itself is not needed to train. `wrapped`: for the class that
    holds the decoder together with a vision tower."""
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": f"{_WRAPPED_TARGETS}({'|'.join(lora.targets)})" if wrapped else list(lora.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def to_peft(parameters: Tensors, *, wrapped: bool = False) -> Tensors:
    """model.layers.0.….lora_A → base_model.model.model.layers.0.….lora_A.weight, contiguous float32; `wrapped`:
    base_model.model.model.language_model.layers.0.…."""
    layers = _PREFIX + (_WRAPPED if wrapped else _PLAIN)
    return {
        f"{layers}{key.removeprefix(_PLAIN)}.weight": tensor.detach().to(torch.float32).contiguous()
        for key, tensor in parameters.items()
    }


def write_adapter(
    output: Path, parameters: Tensors, lora: LoraConfig, base_model: str, *, wrapped: bool = False
) -> None:
    """Write adapter_model.safetensors and adapter_config.json, each atomically.

    Raises:
        OSError: as the system says.
    """
    data = safetensors.torch.save(to_peft(parameters, wrapped=wrapped), metadata={"format": "pt"})

    def write(path: Path) -> None:
        path.write_bytes(data)

    write_atomic(output / WEIGHTS_FILE, write)
    write_json(output / CONFIG_FILE, peft_config(lora, base_model, wrapped=wrapped))


def write_bin(output: Path) -> None:
    """Write adapter_model.bin, a plain state dict with the same weights as the safetensors file beside it."""
    tensors = safetensors.torch.load_file(str(output / WEIGHTS_FILE))

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            torch.save(dict(tensors), file)

    write_atomic(output / BIN_FILE, write)


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter, ours or one that PEFT wrote with plain LoRA on decoder linears.

    Raises:
        RescoldoError: files missing or damaged, or a kind of adapter that the engine does not have.
    """
    config = read_adapter_config(directory)
    lora = lora_of(config, directory / CONFIG_FILE)
    path = directory / WEIGHTS_FILE
    try:
        tensors = safetensors.torch.load_file(str(path))
    except FileNotFoundError:
        raise RescoldoError("is missing", where=str(path), fix="pass the output directory of a finished run") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RescoldoError(f"cannot be read: {error}", where=str(path), fix="train again, or copy it anew") from None
    parameters: Tensors = {}
    for name, tensor in tensors.items():
        key = name.removeprefix(_PREFIX).removesuffix(".weight")
        if key.startswith(_WRAPPED):
            key = _PLAIN + key.removeprefix(_WRAPPED)
        match = _KEY.fullmatch(key)
        if not match or match[1] not in lora.targets:
            raise RescoldoError(f"holds a tensor that is no LoRA weight of its targets: {name}", where=str(path))
        parameters[key] = tensor.to(torch.float32)
    return Adapter(lora, parameters, str(config.get("base_model_name_or_path") or ""))


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json as a mapping.

    Raises:
        RescoldoError: missing, not JSON, not a mapping.
    """
    path = directory / CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise RescoldoError("is too large to be an adapter's config", where=str(path))
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RescoldoError("is missing", where=str(path), fix="pass the output directory of a finished run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RescoldoError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(config, dict):
        raise RescoldoError("is not a JSON object", where=str(path))
    return config


def lora_of(config: dict[str, Any], where: Path) -> LoraConfig:
    """The engine's LoRA settings in a PEFT config.

    Raises:
        RescoldoError: the config asks for what the engine does not do (DoRA, rsLoRA, patterns, other targets…).
    """
    for name in UNSUPPORTED:
        if config.get(name):
            raise RescoldoError(f"{name} is not supported", where=str(where), fix="use a plain LoRA adapter")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise RescoldoError("is not a plain LoRA adapter", where=str(where), fix="peft_type LORA with bias none works")
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets.startswith(_WRAPPED_TARGETS):
        targets = targets.removeprefix(_WRAPPED_TARGETS).removeprefix("(").removesuffix(")").split("|")
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    if not isinstance(targets, list) or not targets or not set(targets) <= set(ALL_LINEARS):
        raise RescoldoError(f"target_modules must be some of {', '.join(ALL_LINEARS)}", where=str(where))
    if (
        not isinstance(rank, int)
        or rank < 1
        or not isinstance(alpha, int | float)
        or not isinstance(dropout, int | float)
    ):
        raise RescoldoError("r, lora_alpha or lora_dropout is no number in range", where=str(where))
    return LoraConfig(rank, float(alpha), float(dropout), tuple(name for name in ALL_LINEARS if name in targets))
