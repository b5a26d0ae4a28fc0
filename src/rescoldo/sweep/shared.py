"""What the runs of a sweep share in memory: the opened base, its frozen weights, the tokenized data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rescoldo.adapter import WEIGHTS_FILE, read_adapter
from rescoldo.base.model import BaseModel
from rescoldo.data.chat_template import thinks
from rescoldo.data.dataset import Dataset
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.files import read_json, sha256
from rescoldo.models.loaded import Loaded, dated_tokenizer, load_for_inference
from rescoldo.role import Role
from rescoldo.run.layout import INFO_FILE
from rescoldo.training.parts import Parts

if TYPE_CHECKING:
    from rescoldo.engine.model import LoraModel


class Shared:
    """Parts for the runs of one sweep, all on the same base in the same precision."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._bases: dict[str, BaseModel] = {}
        self._records: dict[tuple[str, ...], Any] = {}
        self._datasets: dict[tuple[object, ...], Dataset] = {}
        self._model: LoraModel | None = None
        self._checked = False
        self.loads = 0  # number of times that frozen weights were loaded

    def parts(self) -> Parts:
        """The same parts, with each input read once; the machine is checked only before the first run."""
        return replace(
            self._parts,
            open_base=self.open_base,
            check_dataset=self._check_dataset,
            read_dataset=self._read_dataset,
            load_model=self._load_model,
            preflight=self._preflight,
        )

    def open_base(self, spec: str) -> BaseModel:
        """As base.open_base."""
        if spec not in self._bases:
            self._bases[spec] = self._parts.open_base(spec)
        return self._bases[spec]

    def trained(self, run: Path) -> Loaded:
        """A finished run's adapter on the frozen weights in memory (loaded if no run of this process has done so)."""
        info = read_json(run / INFO_FILE) or {}
        adapter = read_adapter(run)
        base = self.open_base(str(info["base_model"]))
        precision = str(info["quantization"])
        if self._model is None:
            self._model = load_for_inference(str(run)).model
            self.loads += 1
        model = with_adapter(self._model, adapter.lora, 0)
        adapter.put_into(model, base.spec)
        tokenizer = dated_tokenizer(base, info)
        return Loaded(str(run), tokenizer, base, precision, run, info, sha256(run / WEIGHTS_FILE), lambda: model)

    def _check_dataset(self, path: Path, role: Role, **form: str) -> Any:
        key = (str(path), role.digest, *form.values())
        if key not in self._records:
            self._records[key] = self._parts.check_dataset(path, role, **form)
        return self._records[key]

    def _read_dataset(
        self,
        path: Path,
        role: Role,
        tokenizer: Any,
        max_length: int,
        limit: int | None,
        records: Any = None,
        *more: Any,
        **form: str,
    ) -> Dataset:
        written = (getattr(tokenizer, "chat_template", None), thinks(tokenizer))
        key = (str(path), role.digest, max_length, limit, written, more, *form.values())
        if key not in self._datasets:
            self._datasets[key] = self._parts.read_dataset(
                path, role, tokenizer, max_length, limit, records, *more, **form
            )
        return self._datasets[key]

    def _load_model(
        self,
        base: BaseModel,
        precision: str,
        lora: LoraConfig,
        *,
        seed: int,
        calibration: Sequence[Example] | None = None,
        frozen_state: dict[str, torch.Tensor] | None = None,
        on_progress: Any = None,
    ) -> Any:
        """As LoraModel.load; the frozen weights are loaded once, and again for a resumed run with another
        calibration."""
        model = self._model
        if model is not None and (frozen_state is None or _equal(model.frozen_state(), frozen_state)):
            if on_progress:
                on_progress(1.0)
            return with_adapter(model, lora, seed)
        loaded: Any = self._parts.load_model(
            base,
            precision,
            lora,
            seed=seed,
            calibration=calibration,
            frozen_state=frozen_state,
            on_progress=on_progress,
        )
        self.loads += 1
        self._model = loaded
        return loaded

    def _preflight(self, prepared: Any, reporter: Any, force: bool) -> None:
        if not self._checked:
            self._parts.preflight(prepared, reporter, force)
            self._checked = True


def with_adapter(model: LoraModel, lora: LoraConfig, seed: int) -> LoraModel:
    """A model that shares the frozen weights and has a new adapter, as LoraModel.load makes it."""
    from rescoldo.engine.lora import LoraGroup
    from rescoldo.engine.model import new_parameters

    twin = copy.copy(model)
    twin.lora, twin.parameters, twin.keep_layers = lora, new_parameters(model.config, lora, seed), None

    def fresh(old: LoraGroup) -> LoraGroup:
        return LoraGroup(old.frozen, old.linears, old.bias, lora, twin.parameters)

    twin.layers = [
        layer.with_groups({site: fresh(group) for site, group in layer.groups.items()}) for layer in model.layers
    ]
    return twin


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
