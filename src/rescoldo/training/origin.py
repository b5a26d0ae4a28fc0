"""The adapter that a run starts from (--from), and base models that turn out to be a directory with an adapter."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter, read_adapter
from rescoldo.base.model import BaseModel
from rescoldo.engine.config import FUSED_LINEARS
from rescoldo.engine.kinds import KINDS, kind_of_run
from rescoldo.errors import RescoldoError
from rescoldo.files import load_json, quote, sha256
from rescoldo.invocation import program
from rescoldo.role import role_names
from rescoldo.run.layout import INFO_FILE, RUN_FILE
from rescoldo.training.config import RunConfig, flag, refusal
from rescoldo.training.objectives import OBJECTIVES
from rescoldo.training.parts import lora_config

SETTINGS = ("adapter", "lora_r", "lora_alpha", "lora_targets", "lora_ranks", "lora_alphas", "lora_layers")


@dataclass(frozen=True)
class Origin:
    """The adapter that a run starts from.

    Attributes:
        path: its directory.
        adapter: its weights and settings.
        digest: SHA-256 of its adapter_model.safetensors, in hexadecimal.
        info: the content of training_info.json; {} if there is none (an adapter written by PEFT).
    """

    path: Path
    adapter: Adapter
    digest: str
    info: dict[str, Any]

    def settings(self, config: RunConfig, base: BaseModel) -> RunConfig:
        """The config with the adapter's own kind, ranks, alphas, targets and layers, and its dropout if neither the
        user nor the objective sets one.

        Raises:
            RescoldoError: the config has other values, the adapter does not fit the base model, or the base model is
                not the one that it was trained on.
        """
        if self.info.get("base_fingerprint") not in (None, base.fingerprint()):
            raise RescoldoError(
                f"the adapter in {self.path} was trained on another base model than {base.spec}",
                where=flag("base_model"),
                fix=f"leave {flag('base_model')} out: that takes {self.info.get('base_model', 'its own')}",
            )
        self.adapter.fits(base.config, base.spec)
        lora, n = self.adapter.lora, base.config.n_layers
        said = self.info.get("config")
        kind = said.get("adapter") if isinstance(said, dict) else None
        if "adapter" in config.model_fields_set:
            kind = config.adapter
        of_adapter = {
            "adapter": kind_of_run(kind, lora.kind),
            "lora_r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_targets": lora.targets,
            "lora_ranks": dict(lora.ranks),
            "lora_alphas": dict(lora.alphas),
            "lora_layers": None if lora.layers is None or len(lora.layers) == n else lora.layers,
        }
        asked = lora_config(config, n)
        given = {name: getattr(config, name) for name in SETTINGS if name in config.model_fields_set}
        if "lora_targets" in given:
            given["lora_targets"] = _as_in(lora.targets, given["lora_targets"])
        if "lora_layers" in given:
            given["lora_layers"] = asked.layers
        wrong = [
            f"{flag(name)} {_shown(v)} (it has {_shown(of_adapter[name])})"
            for name, v in given.items()
            if v != of_adapter[name]
        ]
        if wrong:
            raise RescoldoError(
                f"does not agree with the adapter in {self.path}: {', '.join(wrong)}",
                where=flag("from_adapter"),
                fix=f"leave it out; or leave {flag('from_adapter')} out, and a new adapter is trained",
            )
        if "lora_dropout" not in {*config.model_fields_set, *OBJECTIVES[config.objective].defaults}:
            of_adapter["lora_dropout"] = lora.dropout
        return _with(config, of_adapter, self.path)

    def sentence(self) -> str:
        """The line that a run prints when it starts from this adapter."""
        lora = self.adapter.lora
        return (
            f"Continuing from the adapter in {self.path} ({KINDS[lora.kind].title}, r={lora.rank}, "
            f"alpha={lora.alpha:g}, sha256 {self.digest[:16]}): new optimizer state, new learning-rate schedule"
        )

    def document(self) -> dict[str, str]:
        """The entry in training_info.json."""
        return {"path": str(self.path), "adapter_sha256": self.digest}


def read_origin(config: RunConfig) -> tuple[RunConfig, Origin | None, list[str]]:
    """Read the adapter that --from names, before any model is opened.

    Returns:
        The config with the adapter's base model and role if none are given, the adapter, and messages about it. Without
        --from the config is unchanged, except that a base model that is a directory with an adapter is replaced by the
        adapter's base model.

    Raises:
        RescoldoError: there is no adapter, it cannot be read, or lacks required information.
    """
    if config.from_adapter is None:
        return _base_of_adapter(config)
    path = config.from_adapter
    if not (path / CONFIG_FILE).is_file():
        what, fix = "holds no adapter", "name a finished run's directory, or one that PEFT saved"
        if (path / RUN_FILE).is_file():
            what = "this run has not finished: there is no adapter yet"
            fix = f"{program()} status {quote(path)}"
        raise RescoldoError(f"{path}: {what}", where=flag("from_adapter"), fix=fix)
    info = _info(path)
    origin = Origin(path, read_adapter(path), sha256(path / WEIGHTS_FILE), info)
    filled: dict[str, Any] = {}
    if "base_model" not in config.model_fields_set:
        filled["base_model"] = str(info.get("base_model") or origin.adapter.base_model)
        if not filled["base_model"]:
            raise RescoldoError(
                f"{path} does not name its base model",
                where=flag("from_adapter"),
                fix="name it with --base-model",
            )
    if "role" not in config.model_fields_set and info.get("role"):
        if info["role"] not in role_names():
            raise RescoldoError(
                f"{path} was trained with the role {info['role']!r}", where=flag("from_adapter"),
                fix="name the role to train now with --role",
            )  # fmt: skip
        filled["role"] = info["role"]
    return _with(config, filled, path), origin, [origin.sentence()]


def _base_of_adapter(config: RunConfig) -> tuple[RunConfig, None, list[str]]:
    path = Path(os.path.expanduser(config.base_model))
    try:
        is_model = (path / "config.json").is_file() or any(path.glob("*.gguf"))
        if is_model or not (path / CONFIG_FILE).is_file():
            return config, None, []
    except (OSError, ValueError):  # opening the path later reports the problem
        return config, None, []
    config_file = load_json(path / CONFIG_FILE, "save the adapter again")
    base = str(_info(path).get("base_model") or config_file.get("base_model_name_or_path") or "")
    if not base:
        what = f"{path} holds an adapter that does not name its base model"
        raise RescoldoError(what, where=flag("base_model"), fix="name the base model itself")
    said = (
        f"{path} holds an adapter, not a base model: a new adapter is trained on its base model {base} "
        f"(--from {quote(path)} instead resumes from the adapter)"
    )
    return _with(config, {"base_model": base}, path), None, [said]


def _with(config: RunConfig, values: dict[str, Any], path: Path) -> RunConfig:
    """The config with values from the adapter in `path`.

    Raises:
        RescoldoError: they are invalid for a run.
    """
    for name, value in values.items():
        if reason := refusal(name, value):
            raise RescoldoError(f"{name} of the adapter in {path}: {reason}", where=flag("from_adapter"))
    return RunConfig.model_validate({**config.model_dump(exclude_unset=True), **values})


def _info(path: Path) -> dict[str, Any]:
    return load_json(path / INFO_FILE, f"{program()} verify {quote(path)}") if (path / INFO_FILE).exists() else {}


def _as_in(targets: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """The given targets, with those that the adapter's model fuses into one linear under that linear's name."""
    chosen = set(given)
    for fused, parts in FUSED_LINEARS.items():
        if fused in targets and chosen.issuperset(parts):
            chosen = chosen.difference(parts) | {fused}
    return targets if chosen == set(targets) else given


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items()) or "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else "all" if value is None else str(value)
