"""The speed measured by a plan, saved so that a run can report when it is slower."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rescoldo.engine.kinds import PLAIN
from rescoldo.files import cache_root, read_json, write_json
from rescoldo.system import cpu
from rescoldo.training.config import RunConfig


def _plans_file() -> Path:
    return cache_root() / "plans.json"


def plan_key(config: RunConfig) -> str:
    """The settings that a measured speed depends on."""
    fields = (config.base_model, config.quantization, config.threads, config.lora_r, ",".join(config.lora_targets))
    kind = () if config.adapter == PLAIN else (config.adapter,)
    others = (*kind, *(value for value in (config.lora_ranks, config.lora_layers) if value))
    return "|".join(map(str, (*fields, config.max_length, cpu.model(), *others)))


def remember(config: RunConfig, rate: float) -> None:
    """Save the speed, so that a run can report when it is slower."""
    with contextlib.suppress(OSError):
        known = _known()
        write_json(_plans_file(), {**known, plan_key(config): round(rate, 3)})


def expected_rate(config: RunConfig) -> float | None:
    """The tokens per second that a plan has measured for such a run on this machine; None without a plan."""
    value = _known().get(plan_key(config))
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _known() -> dict[str, Any]:
    return read_json(_plans_file()) or {}
