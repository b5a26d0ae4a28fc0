"""The source of an export: a run's adapter, its base model, and its role."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rescoldo.adapter import WEIGHTS_FILE, Adapter, read_adapter
from rescoldo.base import BaseModel
from rescoldo.engine.kinds import MAGNITUDE, A, B
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.models.loaded import dated_tokenizer, is_run, open_base_of, refuse_unfinished, run_info
from rescoldo.role import Role, role_of_run


@dataclass(frozen=True)
class Source:
    """An opened run. `info` is its training_info.json ({} for an adapter written by PEFT)."""

    run: Path
    info: dict[str, Any]
    adapter: Adapter
    base: BaseModel
    role: Role

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer with its chat template, which writes the run's date if it writes a date."""
        return dated_tokenizer(self.base, self.info)

    @property
    def base_name(self) -> str:
        """The base model's name as the user named it; of a path the last part, since paths are local."""
        if not Path(self.base.spec).exists():
            return self.base.spec
        path = self.base.path.resolve()
        return path.stem if path.is_file() else path.name

    @cached_property
    def adapter_sha256(self) -> str:
        """The SHA-256 of adapter_model.safetensors."""
        return sha256(self.run / WEIGHTS_FILE)

    def changes(self, name: str) -> bool:
        """Whether the adapter changes the base's tensor `name`."""
        return f"{name.removesuffix('.weight')}.{A}" in self.adapter.parameters

    def merged(self, name: str) -> torch.Tensor:
        """The base's tensor with the adapter merged in: float32 if the adapter changes it, else as stored."""
        weight = self.base.tensors.get(name)
        if not self.changes(name):
            return weight
        module, parameters = name.removesuffix(".weight"), self.adapter.parameters
        a, b = parameters[f"{module}.{A}"], parameters[f"{module}.{B}"]
        merged = torch.addmm(weight.float(), b, a, alpha=self.adapter.lora.scale_of(module))
        if self.adapter.lora.magnitude:
            merged *= (parameters[f"{module}.{MAGNITUDE}"] / torch.linalg.vector_norm(merged, dim=1))[:, None]
        return merged


def open_source(run: Path) -> Source:
    """Open a run for export.

    Raises:
        RescoldoError: it is not a run, the adapter is damaged or does not fit its base, or the base has changed since.
    """
    refuse_unfinished(run)
    if not is_run(str(run)):
        raise RescoldoError("is not a run's directory", where=str(run), fix="pass the --output of a finished run")
    info, adapter = run_info(run), read_adapter(run)
    base = open_base_of(run, info, adapter)
    adapter.fits(base.config, base.spec)
    return Source(run, info, adapter, base, role_of_run(run, info))
