"""The forecast of a whole run, from the cost of a few layers."""

from __future__ import annotations

from dataclasses import dataclass

from rescoldo.doctor.measure import Pieces, distinct_rows
from rescoldo.engine.memory import memory_need
from rescoldo.engine.types import CALIBRATION_EXAMPLES
from rescoldo.training.loop import EVALUATION_CHUNK
from rescoldo.training.parts import lora_config
from rescoldo.training.plan import Plan
from rescoldo.training.prepare import Prepared


@dataclass(frozen=True)
class Forecast:
    """The forecast for a run in one precision. Seconds and bytes.

    Attributes:
        seconds: the whole run; its parts are loading, step (a full one, on average), epoch, saving and evaluation (a
            single one; there is one before training and one after each epoch).
        peak_memory: the process's own memory, without mapped pages of the base model.
        kept_layers: the number of layers whose activations fit into the memory that is free now.
        fits: whether the minimum fits.
        kilowatt_hours: None if the machine does not report its power.
        rough: whether it was measured on shortened examples.
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


def forecast(prepared: Prepared, pieces: Pieces, before: float, saving: float, free: int, *, rough: bool) -> Forecast:
    """Extrapolate the measured cost of a few layers to the whole run."""
    config, decoder = prepared.config, prepared.base.config
    pieces = pieces.of_mean_layer(decoder)
    n, plan = decoder.n_layers, Plan(config, len(prepared.train.examples))
    lora = lora_config(config, n)
    trained = n - lora.first_layer  # layers that the backward pass runs through
    adapted = n if lora.layers is None else len(lora.layers)
    groups = [
        [prepared.train.examples[i] for i in group] for epoch in range(plan.epochs) for group in plan.groups(epoch)
    ]
    rows = sum(distinct_rows(group) for group in groups)
    largest = max(
        sum(len(group[i].tokens) for i in batch) for group in groups for batch in plan.batches(list(range(len(group))))
    )
    stored, mapped = prepared.base.stored_bytes(), prepared.base.maps_embedding()
    need = memory_need(decoder, pieces.precision, lora, largest, stored, mapped=mapped)
    room = free - pieces.memory.fixed - n * (pieces.memory.layer - need.layer_activations)
    kept = max(0, min(trained, int(0.9 * room / need.layer_activations)))
    again = (trained - kept) * pieces.evaluate_row.layer * rows  # recomputed forward passes
    forward = (n - trained) * pieces.evaluate_row.layer * rows  # layers without a backward pass
    training = rows * pieces.row.at(trained) + again + forward + len(groups) * pieces.update.at(adapted)
    chunks = [
        prepared.val.examples[i : i + EVALUATION_CHUNK] for i in range(0, len(prepared.val.examples), EVALUATION_CHUNK)
    ]
    evaluation = sum(distinct_rows(chunk) for chunk in chunks) * pieces.evaluate_row.at(n)
    calibrated = sum(len(example.tokens) for example in prepared.train.examples[:CALIBRATION_EXAMPLES])
    loading = before + pieces.load.at(n) + pieces.calibrate_row * n * calibrated
    minutes = max(config.checkpoint_minutes, 0.05)
    checkpoints = plan.epochs + training / (60 * minutes)
    seconds = loading + training + (plan.epochs + 1) * evaluation + (checkpoints + 1) * saving
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
