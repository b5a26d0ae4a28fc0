"""The identity of a run: if any of it differs, a checkpoint must not be continued."""

from __future__ import annotations

import contextlib
import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rescoldo.data.dataset import Dataset
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import quote, write_json
from rescoldo.role import Role
from rescoldo.run.layout import INFO_FILE, METRICS, RUN_FILE
from rescoldo.system import cpu
from rescoldo.training.checkpoint import FORMAT, UnresumableError
from rescoldo.training.config import RunConfig

# fields that may change on resuming, because they do not change the result
FREE = frozenset(
    {
        "train",
        "val",
        "output",
        "base_model",
        "role",
        "text",
        "preset",
        "train_limit",
        "val_limit",
        "from_adapter",
        "replay",
        "checkpoint_minutes",
        "keep_checkpoints",
        "memory_gb",
        "report_to",
    }
)
OURS = ("adapter_config.json", "adapter_model.safetensors", INFO_FILE, METRICS)


# fields that older versions did not have: their runs are treated as having the default
LATER = frozenset(
    {
        "adapter",
        "lora_ranks",
        "lora_alphas",
        "lora_layers",
        "lora_plus",
        "lr_schedule",
        "loss",
        "thinking",
        "prompt_loss_weight",
        "balance_classes",
        "objective",
        "beta",
        "desirable_weight",
        "undesirable_weight",
    }
)


def identity(
    config: RunConfig,
    role: Role,
    base_fingerprint: str,
    train: Dataset,
    val: Dataset,
    day: date | None = None,
    parent: str = "",
) -> dict[str, Any]:
    """The identity: name → value. Data, role, base model and parent adapter are identified by content, not by path.
    `auto` must be resolved in `config`.

    Args:
        day: the date in the prompts, if the chat template writes one.
        parent: SHA-256 of the adapter that the run started from; "" for a new one.
    """
    usual = {name for name in LATER if getattr(config, name) == RunConfig.model_fields[name].default}
    fields = {name: v for name, v in config.model_dump(mode="json").items() if name not in FREE and name not in usual}
    return {
        "checkpoint format": FORMAT,
        "role": role.identity,
        "base model": base_fingerprint[:16],
        "training examples": f"{len(train.examples)}, {train.digest[:16]}",
        "validation examples": f"{len(val.examples)}, {val.digest[:16]}",
        **({"chat date": day.isoformat()} if day else {}),
        **({"parent adapter": parent[:16]} if parent else {}),
        **fields,
        "surroundings": surroundings(),
    }


def surroundings() -> dict[str, str]:
    """Versions and hardware that may change the last bits of a result, but do not prevent resuming."""
    return {"cpu": cpu.model(), **versions()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a result."""
    found = {"python": platform.python_version()}
    for name in ("rescoldo", "torch", "transformers", "tokenizers", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def changed(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names that differ, except for the surroundings."""
    return [name for name in {**now, **was} if name != "surroundings" and was.get(name) != now.get(name)]


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """'field: was → is' for each name that differs, except for the surroundings."""
    return [f"{name}: {_short(was.get(name))} → {_short(now.get(name))}" for name in changed(was, now)]


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def surrounding_differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences of the surroundings, in the same format."""
    now = now.get("surroundings") or {}
    before = {name: value for name, value in (was.get("surroundings") or {}).items() if name in now}
    return differences(before, now)


def refuse_if_different(was: dict[str, Any], now: dict[str, Any], output: Path, what: str) -> None:
    """Refuse to continue a run other than the requested one.

    Raises:
        UnresumableError: with all differences.
    """
    found = differences(was, now)
    if found:
        listed = "".join(f"\n    {line}" for line in found)
        raise UnresumableError(
            f"{output} holds {what} with other settings (was → is):{listed}",
            where="--output",
            fix="give the settings it was started with to resume it; or another --output; or --restart to start over "
            f"(the old run is kept as {free_name(output).name})",
        )


def refuse_if_foreign(output: Path) -> None:
    """Refuse to overwrite files of another program.

    Raises:
        RescoldoError: there is an adapter or the like, and no run.json.
    """
    found = [name for name in OURS if (output / name).exists()]
    if found and not (output / RUN_FILE).exists():
        raise RescoldoError(
            f"{output} holds {', '.join(found)} that this program did not start",
            where="--output",
            fix=f"pass another --output, or --restart to move the directory aside (to {free_name(output).name})",
        )


def write_run_file(
    output: Path,
    config: RunConfig,
    preset: dict[str, Any],
    now: dict[str, Any],
    started: str,
    examples: dict[str, int],
) -> None:
    """Write run.json, for resuming, `status` and the run's page.

    Args:
        preset: the fields that the preset set.
        now: the identity.
        examples: their number in `train` and `val`.
    """
    value = {"format": FORMAT, "started": started, "config": config.model_dump(mode="json")}
    write_json(output / RUN_FILE, {**value, "from_preset": sorted(preset), "examples": examples, "identity": now})


def free_name(output: Path) -> Path:
    """output.old-1, or the first such name that is free; if output is a link, next to the directory that it points
    to."""
    output = Path(os.path.realpath(output))
    k = 1
    while os.path.lexists(output.with_name(f"{output.name}.old-{k}")):
        k += 1
    return output.with_name(f"{output.name}.old-{k}")


def move_aside(output: Path) -> Path:
    """Rename the output directory to a free name, create it again, and return the new name. A link to it stays, so that
    the new run is on the same disk.

    Raises:
        RescoldoError: it cannot be renamed.
    """
    target = free_name(output)
    real = Path(os.path.realpath(output))
    if not output.is_absolute() and Path.cwd().is_relative_to(real):  # a relative `output` would change its meaning
        what = "--restart would move this directory aside, but it is the current directory"
        raise RescoldoError(what, where=str(output), fix=f"cd {quote(real.parent)}, and give the paths relative to it")
    try:
        os.rename(real, target)
        real.mkdir()
    except OSError as error:
        what = f"cannot be moved aside to {target}: {error.strerror}"
        raise RescoldoError(what, where=str(output), fix="pass another --output", exit_code=EXIT_FAILURE) from None
    return target
