"""What a run will take, from a measurement of this machine of about a minute: time, memory, disk, energy."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch

from rescoldo.doctor.measure import Pieces, distinct_rows, guess_step_seconds, measure
from rescoldo.doctor.needs import adapter_parameters, disk_need, memory_need
from rescoldo.doctor.rate import remember
from rescoldo.doctor.room import existing
from rescoldo.engine.auto import choose_precision, product_rates
from rescoldo.engine.config import LINEARS
from rescoldo.engine.ops import NF4_BLOCK
from rescoldo.engine.types import Example
from rescoldo.run.memory import memory_available
from rescoldo.train.config import RunConfig
from rescoldo.train.loop import EVALUATION_CHUNK
from rescoldo.train.parts import lora_config
from rescoldo.train.plan import Plan
from rescoldo.train.prepare import Prepared
from rescoldo.train.start import CALIBRATION_EXAMPLES

MAIN_SECONDS = 25.0  # for the precision of the run
OTHER_SECONDS = 6.0  # for each of the others, which are measured on shorter examples
FEW_ROWS = 256
WRITE_BYTES = 16 << 20
PRECISIONS = ("int8", "bf16", "nf4", "fp32")


@dataclass(frozen=True)
class Forecast:
    """One precision's run. Seconds and bytes.

    Attributes:
        seconds: of the whole run; loading, step (a full one, on average), epoch, evaluation, saving: its parts.
        peak_memory: the process's own; mapped pages of the base model do not count.
        kept_layers: how many layers' activations fit into what is free now.
        fits: whether the least it needs fits.
        kilowatt_hours: None where the machine does not tell its power.
        rough: whether it was measured on short examples only.
    """

    precision: str
    seconds: float
    loading: float
    step: float
    epoch: float
    evaluation: float
    saving: float
    peak_memory: int
    kept_layers: int
    fits: bool
    kilowatt_hours: float | None
    tokens_per_second: float
    rough: bool


@dataclass(frozen=True)
class RunPlan:
    """What `rescoldo plan` tells. `changes`: what would make it shorter, each {"what", "seconds"}."""

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

    @property
    def chosen(self) -> Forecast:
        """The forecast of the run's own precision."""
        return next(one for one in self.forecasts if one.precision == self.precision)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        now = time.time()
        rows = [{"t": round(t, 1), "at": _iso(now + t), "what": what} for t, what in self.timeline]
        return {**asdict(self), "timeline": rows, "forecasts": [asdict(one) for one in self.forecasts]}


def make_plan(prepared: Prepared, *, all_precisions: bool, say: Callable[[str], None]) -> RunPlan:
    """Measure and compute. `say` hears what is being done."""
    began = time.monotonic()
    config, base = prepared.config, prepared.base
    torch.set_num_threads(config.threads or 1)
    started = time.time() - psutil.Process().create_time()  # imports, tokenizer, datasets: the run does them too
    free = memory_available()
    saving = write_seconds(config, adapter_parameters(base.config, lora_config(config)))
    rates = product_rates(min(base.config.hidden_size, 4096), min(base.config.intermediate_size, 4096))
    forecasts = []
    possible = [name for name in PRECISIONS if name == config.quantization or all_precisions]
    if any(base.config.linear_shape(name)[1] % NF4_BLOCK for name in LINEARS):
        possible = [name for name in possible if name != "nf4"]
    for precision in sorted(possible, key=lambda name: name != config.quantization):
        main = precision == config.quantization
        say(f"measuring {precision} …")
        rate = rates["bf16" if precision == "nf4" else precision]
        pieces = _measure(prepared, precision, rate, MAIN_SECONDS if main else OTHER_SECONDS, main)
        forecasts.append(forecast(prepared, pieces, started, saving, free, rough=not main))
    lora = lora_config(config)
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
        changes(prepared, forecasts, choose_precision(base.config, rates, free).precision),
    )
    remember(config, forecasts[0].tokens_per_second)
    return result


def _measure(prepared: Prepared, precision: str, rate: float, seconds: float, main: bool) -> Pieces:
    """Measure as much of the run's first step as `seconds` allow: fewer examples first, then fewer layers."""
    config, base = prepared.config, prepared.base
    plan = Plan(config, len(prepared.train.examples))
    mean = prepared.train.tokens / len(prepared.train.examples)
    group = [prepared.train.examples[i] for i in plan.groups(0)[0]]
    group.sort(key=lambda example: abs(len(example.tokens) - mean))  # the most usual ones first
    val = sorted(prepared.val.examples, key=lambda example: abs(len(example.tokens) - mean))[:2]
    if not main:
        group, val = [shortened(example) for example in group[:2]], [shortened(example) for example in val[:1]]
    n = base.config.n_layers

    def cost(examples: list[Example], layers: int) -> float:
        """Of the measurement: the step on all and on half of the layers, loading, evaluations."""
        return 2.5 * guess_step_seconds(base.config, rate, distinct_rows(examples), layers)

    layers = min(n, 8)
    while layers > 2 and cost(group[: min(2, len(group))], layers) > seconds:
        layers -= 1
    while len(group) > 1 and cost(group, layers) > seconds:
        group = group[:-1]
    return measure(base, precision, lora_config(config), group, val, layers=layers)


def shortened(example: Example) -> Example:
    """The example cut to FEW_ROWS tokens, at least some of them targets."""
    prompt = min(example.n_prompt, FEW_ROWS // 2)
    return Example(example.tokens[example.n_prompt - prompt :][:FEW_ROWS], prompt)


def forecast(prepared: Prepared, pieces: Pieces, before: float, saving: float, free: int, *, rough: bool) -> Forecast:
    """From what a few layers cost to the whole run."""
    config, decoder, lora = prepared.config, prepared.base.config, lora_config(prepared.config)
    n, plan = decoder.n_layers, Plan(config, len(prepared.train.examples))
    groups = [
        [prepared.train.examples[i] for i in group] for epoch in range(plan.epochs) for group in plan.groups(epoch)
    ]
    rows = sum(distinct_rows(group) for group in groups)
    largest = max(
        sum(len(group[i].tokens) for i in batch) for group in groups for batch in plan.batches(list(range(len(group))))
    )
    need = memory_need(decoder, pieces.precision, lora, largest)
    room = free - pieces.memory.fixed - n * (pieces.memory.layer - need.layer_activations)
    kept = max(0, min(n, int(0.9 * room / need.layer_activations)))
    again = (n - kept) * pieces.evaluate_row.layer * rows  # layers whose forward pass is done twice
    training = rows * pieces.row.at(n) + again + len(groups) * pieces.update.at(n)
    chunks = [
        prepared.val.examples[i : i + EVALUATION_CHUNK] for i in range(0, len(prepared.val.examples), EVALUATION_CHUNK)
    ]
    evaluation = sum(distinct_rows(chunk) for chunk in chunks) * pieces.evaluate_row.at(n)
    calibrated = sum(len(example.tokens) for example in prepared.train.examples[:CALIBRATION_EXAMPLES])
    loading = before + pieces.load.at(n) + pieces.calibrate_row * n * calibrated
    minutes = max(config.checkpoint_minutes, 0.05)
    checkpoints = plan.epochs + training / (60 * minutes)
    seconds = loading + training + plan.epochs * evaluation + (checkpoints + 1) * saving
    activations = kept * need.layer_activations * (1 if pieces.rows else 0)
    measured = pieces.memory.at(n) - n * need.layer_activations * pieces.rows / max(1, largest)
    tokens = sum(len(example.tokens) for group in groups for example in group)
    return Forecast(
        precision=pieces.precision,
        seconds=seconds,
        loading=loading,
        step=training / len(groups),
        epoch=training / plan.epochs,
        evaluation=evaluation,
        saving=saving,
        peak_memory=int(max(measured, 0) + activations),
        kept_layers=kept,
        fits=need.least <= free,
        kilowatt_hours=None if pieces.watts is None else pieces.watts * seconds / 3.6e6,
        tokens_per_second=tokens / training,
        rough=rough,
    )


def timeline(plan: Plan, one: Forecast) -> list[tuple[float, str]]:
    """(seconds from the start, what begins or is done then)."""
    rows = [(0.0, "start: libraries, tokenizer, datasets, weights"), (one.loading, "training begins")]
    at = one.loading
    for epoch in range(1, plan.epochs + 1):
        at += one.epoch
        rows.append((at, f"epoch {epoch} of {plan.epochs} trained, evaluation begins"))
        at += one.evaluation + one.saving
        rows.append((at, f"epoch {epoch} evaluated and saved"))
    rows.append((one.seconds, "adapter saved, done"))
    return rows


def changes(prepared: Prepared, forecasts: list[Forecast], best: str) -> list[dict[str, Any]]:
    """What would make the run shorter, and how long it would take then."""
    config, chosen = prepared.config, forecasts[0]
    found: list[dict[str, Any]] = []
    for other in forecasts[1:]:
        if other.fits and other.seconds < 0.9 * chosen.seconds:
            found.append({"what": f"--quantization {other.precision}", "seconds": other.seconds})
    work = chosen.seconds - chosen.loading
    if config.epochs > 1 and not config.max_steps:
        found.append({"what": f"--epochs {config.epochs - 1}", "seconds": chosen.seconds - work / config.epochs})
    lengths = sorted(len(example.tokens) for example in prepared.train.examples)
    limit = lengths[max(0, math.ceil(0.75 * len(lengths)) - 1)]
    inside = [length for length in lengths if length <= limit]
    if len(inside) < len(lengths):
        share = sum(inside) / sum(lengths)
        what = f"--max-length {limit} (leaves out {len(lengths) - len(inside)} of {len(lengths)} examples)"
        found.append({"what": what, "seconds": chosen.loading + work * share})
    half = chosen.loading / 2 + work / 2
    found.append({"what": "a base model with half as many layers", "seconds": half})
    return found


def write_seconds(config: RunConfig, parameters: int) -> float:
    """How long a checkpoint takes to get onto the output's disk, measured with a small file there."""
    size = 4 * 4 * parameters
    data = os.urandom(1 << 20) * (min(size, WRITE_BYTES) >> 20 or 1)
    path = existing(config.output)
    target = (path if path.is_dir() else path.parent) / f".rescoldo-plan.{os.getpid()}.tmp"
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
