"""The adapter's files, in PEFT's format. Keys there: base_model.model.<module>.lora_A.weight, float32."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from rescoldo.adapter.peft import parse_config, peft_config, read_config
from rescoldo.engine.kinds import MAGNITUDE, A, B
from rescoldo.engine.types import LoraConfig
from rescoldo.engine.weights import Tensors
from rescoldo.errors import RescoldoError
from rescoldo.files import quote, write_atomic, write_json
from rescoldo.invocation import program

if TYPE_CHECKING:
    from rescoldo.engine.config import DecoderConfig
    from rescoldo.engine.model import LoraModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BIN_FILE = "adapter_model.bin"
CALIBRATION_FILE = "calibration.safetensors"

_PREFIX = "base_model.model."
_PLAIN, _WRAPPED = "model.layers.", "model.language_model.layers."
_KEY = re.compile(rf"model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+)\.({A}|{B}|{MAGNITUDE})")
_MODULES = (A, B)  # of those tensors, PEFT's linears, whose weights have ".weight" behind their names


@dataclass(frozen=True)
class Adapter:
    """An adapter read from disk.

    Attributes:
        lora: kind, ranks, alphas, dropout, targets, layers.
        parameters: A (rank, in) and B (out, rank) of each adapted linear, and its magnitude (out,) where its kind has
            one, float32, named as LoraModel names them.
        base_model: as the config names it, "" where it does not.
        directory: where it was read from.
        wrapped: whether its files have the names of a class that holds the decoder together with a vision tower.
    """

    lora: LoraConfig
    parameters: Tensors
    base_model: str
    directory: Path
    wrapped: bool = False

    def misfit(self, base: DecoderConfig) -> str:
        """In what it does not fit a base model of these shapes: one sentence, "" where it fits."""
        from rescoldo.engine.memory import parameter_shapes

        beyond = [layer for layer in self.lora.layers or () if layer >= base.n_layers]
        if beyond:
            return f"{CONFIG_FILE} names layer {beyond[0]}, and the model has {base.n_layers} layers"
        expected = parameter_shapes(base, self.lora)
        found = {name: tuple(tensor.shape) for name, tensor in self.parameters.items()}
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        if missing:
            return f"{_several('missing', missing)} (of {len(expected)} that the config asks for)"
        if unknown:
            return _several("not part of the model", unknown)
        wrong = sorted(name for name in found if found[name] != expected[name])
        if wrong:
            name = wrong[0]
            return f"{_several('of another shape', wrong)}: {list(found[name])}, expected {list(expected[name])}"
        return ""

    def fits(self, base: DecoderConfig, name: str) -> None:
        """Stop unless it fits the base model `name`, and all its numbers are finite.

        Raises:
            RescoldoError: it does not fit, or holds NaN or Inf.
        """
        where, fix = str(self.directory / WEIGHTS_FILE), f"{program()} verify {quote(self.directory)}"
        fault = self.misfit(base)
        if fault:
            raise RescoldoError(f"does not fit its base model {name}: {fault}", where=where, fix=fix)
        for key, tensor in self.parameters.items():
            if not bool(torch.isfinite(tensor).all()):
                raise RescoldoError(f"{key} contains NaN or Inf", where=where, fix="train again")

    def put_into(self, model: LoraModel, name: str) -> None:
        """Copy the weights into a model of the base `name` that was made for this adapter's `lora`.

        Raises:
            RescoldoError: see `fits`.
        """
        self.fits(model.config, name)
        with torch.no_grad():
            for key, parameter in model.parameters.items():
                parameter.copy_(self.parameters[key])
        model.sync()


def _several(what: str, names: list[str]) -> str:
    return f"{names[0]} is {what}" + (f", and {len(names) - 1} more are" if len(names) > 1 else "")


def to_peft(parameters: Tensors, *, wrapped: bool = False) -> Tensors:
    """model.layers.0.….lora_A → base_model.model.model.layers.0.….lora_A.weight, contiguous float32; a magnitude has no
    ".weight" behind it; `wrapped`: base_model.model.model.language_model.layers.0.…."""
    layers = _PREFIX + (_WRAPPED if wrapped else _PLAIN)
    return {
        f"{layers}{key.removeprefix(_PLAIN)}{'.weight' if key.endswith(_MODULES) else ''}": (
            tensor.detach().to(torch.float32).contiguous()
        )
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
    """Read an adapter, ours or one that PEFT wrote, of one of the KINDS on decoder linears.

    Raises:
        RescoldoError: files missing or damaged, or a kind of adapter that the engine does not have.
    """
    config = read_config(directory / CONFIG_FILE)
    lora = parse_config(config, str(directory / CONFIG_FILE))
    parameters: Tensors = {}
    wrapped = False
    path = directory / WEIGHTS_FILE
    for name, tensor in _load(path, "train again, or copy it again").items():
        key = name.removeprefix(_PREFIX).removesuffix(".weight")
        if key.startswith(_WRAPPED):
            key, wrapped = _PLAIN + key.removeprefix(_WRAPPED), True
        match = _KEY.fullmatch(key)
        known = match and match[1] in lora.targets and (lora.magnitude or match[2] != MAGNITUDE)
        if not known or not tensor.is_floating_point():
            raise RescoldoError(f"{name} is not a LoRA weight of the config's target_modules", where=str(path))
        parameters[key] = tensor.to(torch.float32)
    return Adapter(lora, parameters, str(config.get("base_model_name_or_path") or ""), directory, wrapped)


def _load(path: Path, fix: str) -> Tensors:
    try:
        tensors: Tensors = safetensors.torch.load_file(str(path))
    except FileNotFoundError:
        raise RescoldoError("is missing", where=str(path), fix="pass the output directory of a finished run") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RescoldoError(f"cannot be read: {error}", where=str(path), fix=fix) from None
    return tensors


def write_calibration(output: Path, calibration: Tensors) -> bool:
    """Write the input ranges that the frozen weights were converted with (LoraModel.frozen_state(): what makes an int8
    or nf4 model the same again), atomically. Without any (fp32, bf16) there is no file. Returns whether there is one.

    Raises:
        OSError: as the system says.
    """
    path = output / CALIBRATION_FILE
    if not calibration:
        path.unlink(missing_ok=True)
        return False
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in calibration.items()})

    def write(path: Path) -> None:
        path.write_bytes(data)

    write_atomic(path, write)
    return True


def read_calibration(directory: Path) -> Tensors | None:
    """What write_calibration wrote; None where there is none.

    Raises:
        RescoldoError: the file is damaged.
    """
    path = directory / CALIBRATION_FILE
    return _load(path, f"{program()} verify {quote(directory)}") if path.exists() else None
