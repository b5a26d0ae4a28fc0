"""What is exported: a run's adapter, the base model it belongs to, and the role it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rescoldo.base import BaseModel
from rescoldo.engine.model import parameter_shapes
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.models.loaded import dated_tokenizer, is_run, open_base_of, refuse_unfinished, run_info, verify_command
from rescoldo.role import Role, role_of_run
from rescoldo.train.adapter import WEIGHTS_FILE, Adapter, read_adapter


@dataclass(frozen=True)
class Source:
    """A run, opened. `info` is its training_info.json ({} for an adapter that PEFT wrote)."""

    run: Path
    info: dict[str, Any]
    adapter: Adapter
    base: BaseModel
    role: Role

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer with its chat template, which writes the date of the run if it writes any."""
        return dated_tokenizer(self.base, self.info)

    @cached_property
    def adapter_sha256(self) -> str:
        """Of adapter_model.safetensors."""
        return sha256(self.run / WEIGHTS_FILE)

    def changes(self, name: str) -> bool:
        """Whether the adapter changes the base's tensor `name`."""
        return f"{name.removesuffix('.weight')}.lora_A" in self.adapter.parameters

    def merged(self, name: str) -> torch.Tensor:
        """The base's tensor with the adapter's part added: float32 where the adapter changes it, else as stored."""
        weight = self.base.tensors.get(name)
        if not self.changes(name):
            return weight
        module, parameters = name.removesuffix(".weight"), self.adapter.parameters
        a, b = parameters[f"{module}.lora_A"], parameters[f"{module}.lora_B"]
        return torch.addmm(weight.float(), b, a, alpha=self.adapter.lora.scale)


def open_source(run: Path) -> Source:
    """Open a run for export.

    Raises:
        RescoldoError: no run, a damaged adapter, one that does not fit its base, or a base that has changed since.
    """
    refuse_unfinished(run)
    if not is_run(str(run)):
        raise RescoldoError("is no run directory", where=str(run), fix="pass the --output of a finished run")
    info, adapter = run_info(run), read_adapter(run)
    base = open_base_of(run, info, adapter)
    expected = parameter_shapes(base.config, adapter.lora)
    found = {name: tuple(tensor.shape) for name, tensor in adapter.parameters.items()}
    where, fix = str(run / WEIGHTS_FILE), verify_command(run)
    if expected != found:
        odd = min(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise RescoldoError(f"does not fit its base model {base.spec}: {odd} has another shape", where=where, fix=fix)
    for name, tensor in adapter.parameters.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RescoldoError(f"{name} holds values that are no numbers", where=where, fix="train again")
    return Source(run, info, adapter, base, role_of_run(run, info))
