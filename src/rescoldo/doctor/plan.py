"""Estimates of a run's time, memory, disk space and energy, from about a minute of measuring on this machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch

from rescoldo.doctor.changes import changes
from rescoldo.doctor.energy import unreadable
from rescoldo.doctor.forecast import Forecast, forecast
from rescoldo.doctor.measure import Pieces, distinct_rows, guess_step_seconds, measure
from rescoldo.doctor.needs import checkpoint_bytes, disk_need
from rescoldo.doctor.rate import remember
from rescoldo.doctor.room import existing
from rescoldo.engine.auto import product_rates
from rescoldo.engine.precisions import PRECISIONS, fitting
from rescoldo.engine.types import Example
from rescoldo.files import temporary_beside
from rescoldo.system.memory import memory_available
from rescoldo.training.config import RunConfig
from rescoldo.training.parts import lora_config
from rescoldo.training.plan import Plan
from rescoldo.training.prepare import Prepared

MAIN_SECONDS = 25.0  # time budget for the run's own precision
OTHER_SECONDS = 20.0  # for each of the others, on shorter examples if necessary
SHORTER_ROWS = (768, 512, 256)
WRITE_BYTES = 16 << 20


@dataclass(frozen=True)
class RunPlan:
    """The result of `rescoldo plan`. `changes`: changes that would shorten the run, each {"what", "seconds"}. `energy`:
    why the energy is not known; "" if it is."""

    base_model: str
    precision: str
    steps: int
    epochs: int
    disk_bytes: int
    disk_free: int
    measured_in: float
    forecasts: list[Forecast]
    timeline: list[tuple[float, str]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    energy: str = ""

    @property
    def chosen(self) -> Forecast:
        """The forecast for the run's own precision."""
        return next(one for one in self.forecasts if one.precision == self.precision)

    def as_json(self) -> dict[str, Any]:
        """The JSON that `--json` prints."""
        now = time.time()
        rows = [{"t": round(t, 1), "at": _iso(now + t), "what": what} for t, what in self.timeline]
        return {**asdict(self), "timeline": rows, "forecasts": [asdict(one) for one in self.forecasts]}


def make_plan(prepared: Prepared, *, all_precisions: bool, say: Callable[[str], None]) -> RunPlan:
    """Measure and estimate. `say` is called with progress messages."""
    began = time.monotonic()
    config, base = prepared.config, prepared.base
    torch.set_num_threads(config.threads or 1)
    started = time.time() - psutil.Process().create_time()  # imports, tokenizer, datasets: the run needs this time too
    free = memory_available()
    lora = lora_config(config, base.config.n_layers)
    saving = write_seconds(config, checkpoint_bytes(base.config, lora))
    rates = product_rates(min(base.config.hidden_size, 4096), min(base.config.intermediate_size, 4096))
    forecasts = []
    possible = [name for name in fitting(base.config) if name == config.quantization or all_precisions]
    for precision in sorted(possible, key=lambda name: name != config.quantization):
        say(f"measuring {precision} …")
        rate = rates[PRECISIONS[precision].product]
        pieces, rough = _measure(prepared, precision, rate)
        forecasts.append(forecast(prepared, pieces, started, saving, free, rough=rough))
    plan = Plan(config, len(prepared.train.examples))
    disk = disk_need(base.config, lora, plan.epochs, config.keep_checkpoints)
    place = existing(config.output)
    result = RunPlan(
        config.base_model,
        config.quantization,
        plan.total_steps,
        plan.epochs,
        disk,
        psutil.disk_usage(str(place)).free,
        round(time.monotonic() - began, 1),
        forecasts,
        timeline(plan, forecasts[0]),
        changes(prepared, forecasts),
        "" if forecasts[0].kilowatt_hours else unreadable() or "not readable here: the counters do not change",
    )
    remember(config, forecasts[0].tokens_per_second)
    return result


def _measure(prepared: Prepared, precision: str, rate: float) -> tuple[Pieces, bool]:
    """Measure as much of the run's first step as the time allows: first with fewer examples, then with fewer layers,
    then, except for the run's own precision, with shorter examples. Returns the measurements, and whether examples were
    shortened."""
    config, base = prepared.config, prepared.base
    main = precision == config.quantization
    seconds = MAIN_SECONDS if main else OTHER_SECONDS
    plan = Plan(config, len(prepared.train.examples))
    mean = prepared.train.tokens / len(prepared.train.examples)
    group = [prepared.train.examples[i] for i in plan.groups(0)[0]]
    group.sort(key=lambda example: abs(len(example.tokens) - mean))  # the most typical ones first
    val = sorted(prepared.val.examples, key=lambda example: abs(len(example.tokens) - mean))[:2]
    n = base.config.n_layers

    def cost(examples: list[Example], layers: int) -> float:
        """The measurement's seconds: the step on all layers and on half of them, loading, evaluations."""
        return 2.5 * guess_step_seconds(base.config, rate, distinct_rows(examples), layers)

    layers = min(n, 8)
    few = group[: 2 if main else 1]
    while layers > 2 and cost(few, layers) > seconds:
        layers -= 1
    while len(group) > 1 and cost(group, layers) > seconds:
        group = group[:-1]
    rough = False
    for rows in () if main else SHORTER_ROWS:
        if cost(group, layers) > seconds:
            group, val = [shortened(group[0], rows)], [shortened(val[0], rows)]
            rough = True
    return measure(base, precision, lora_config(config, n), group, val, layers=layers), rough


def shortened(example: Example, rows: int) -> Example:
    """The example cut to `rows` tokens, at least some of them targets."""
    prompt = min(example.n_prompt, rows // 2)
    return Example(example.tokens[example.n_prompt - prompt :][:rows], prompt)  # weights, documents do not affect speed


def timeline(plan: Plan, one: Forecast) -> list[tuple[float, str]]:
    """(seconds from the start, event) for each phase of the run."""
    rows = [(0.0, "start: libraries, tokenizer, datasets, weights"), (one.loading, "validation loss before training")]
    at = one.loading + one.evaluation
    rows.append((at, "training begins"))
    for epoch in range(1, plan.epochs + 1):
        at += one.epoch
        rows.append((at, f"epoch {epoch} of {plan.epochs} trained, evaluation begins"))
        at += one.evaluation + one.saving
        rows.append((at, f"epoch {epoch} evaluated and saved"))
    rows.append((one.seconds, "adapter saved, done"))
    return rows


def write_seconds(config: RunConfig, size: int) -> float:
    """The time to write a checkpoint of `size` bytes to the output's disk, estimated with a small file there."""
    data = os.urandom(1 << 20) * (min(size, WRITE_BYTES) >> 20 or 1)
    path = existing(config.output)
    target = temporary_beside((path if path.is_dir() else path.parent) / "rescoldo-plan")
    began = time.monotonic()
    try:
        with open(target, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return 0.0
    finally:
        with contextlib.suppress(OSError):
            target.unlink()
    return (time.monotonic() - began) * size / len(data)


def _iso(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(moment))
