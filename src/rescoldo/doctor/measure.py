"""Measures time and memory of a few layers of a model, with the training engine; plans are based on this.

The layers of most models have the same shapes. So a slice of them shows the cost of one layer, and the rest (the head,
the embeddings) is paid once. If layers differ, the cost is assumed to grow with a layer's weights.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rescoldo.base.model import BaseModel
from rescoldo.doctor.energy import energy
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.memory import table_bytes
from rescoldo.engine.model import LoraModel, evaluate_loss
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.engine.prefix import group_by_prefix
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.system.memory import own_memory
from rescoldo.training.optimizer import AdamW, clip

CALIBRATION_ROWS = 96  # tokens of the example for timing int8's calibration
SHARE_OF_PRODUCTS = 0.25  # a step reaches at least this fraction of the best product rate; for a first guess
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Line:
    """A cost as a linear function of the number of layers: `fixed` + layers · `layer`."""

    fixed: float
    layer: float

    def at(self, layers: int) -> float:
        """The cost with that many layers, at least 0."""
        return max(0.0, self.fixed + layers * self.layer)


@dataclass(frozen=True)
class Pieces:
    """The measurements in one precision. Seconds, bytes, watts.

    Attributes:
        load: building the model without calibration.
        calibrate_row: int8's and nf4's calibration, one token through one layer; 0 in the other precisions.
        row: forward and backward pass of one token (distinct within its step); the head's part is in `fixed`.
        evaluate_row: forward pass of one token.
        update: the optimizer's update.
        memory: the process's own memory at the peak of a step over `rows` tokens, with the activations of all layers
            kept.
        rows: tokens of the measured step.
        layers: the number of layers that were loaded.
        watts: of the processor packages during the step; None if they cannot be measured.
    """

    precision: str
    load: Line
    calibrate_row: float
    row: Line
    evaluate_row: Line
    update: Line
    memory: Line
    rows: int
    layers: int
    watts: float | None

    def of_mean_layer(self, config: DecoderConfig) -> Pieces:
        """The same for an average layer of the whole model, by the weights of its linears: if layers differ, the
        measured ones, the lowest, may be smaller than the others."""
        measured = config.first_layers(self.layers).linear_weights / self.layers
        share = config.linear_weights / config.n_layers / measured

        def mean(one: Line) -> Line:
            return Line(one.fixed, share * one.layer)

        return replace(
            self,
            load=mean(self.load),
            calibrate_row=share * self.calibrate_row,
            row=mean(self.row),
            evaluate_row=mean(self.evaluate_row),
            update=mean(self.update),
            memory=mean(self.memory),
        )


def distinct_rows(examples: Sequence[Example]) -> int:
    """The tokens that one optimizer step over these examples computes; shared prefixes count once."""
    groups = group_by_prefix(examples)
    return sum(g.length + sum(len(examples[i].tokens) - g.length for i in g.indices) for g in groups)


def measure(
    base: BaseModel,
    precision: str,
    lora: LoraConfig,
    step: Sequence[Example],
    val: Sequence[Example],
    *,
    layers: int,
) -> Pieces:
    """Load `layers` layers, and run a step over `step` and an evaluation of `val` on all of them and on fewer.

    Args:
        lora: applied to all measured layers, even if the run adapts only some.
        step: the examples of the measured step.
        val: the examples of the measured evaluation.
        layers: at least 2, if the model has that many.
    """
    kernels()  # compiled at the first use, which must not count as calibration
    n, lora = min(layers, base.config.n_layers), replace(lora, layers=None)
    sliced = slice_of(base, n)
    example = step[0]
    short = Example(example.tokens[: max(example.n_prompt + 2, CALIBRATION_ROWS)], example.n_prompt)
    started = own_memory()
    calibration, state = 0.0, None
    if PRECISIONS[precision].calibrated:
        began = time.monotonic()
        first = LoraModel.load(sliced, precision, lora, seed=0, calibration=[short])
        calibration, state = time.monotonic() - began, first.frozen_state()
        del first
    at: list[float] = [time.monotonic()]
    model = LoraModel.load(
        sliced, precision, lora, seed=0, frozen_state=state, on_progress=lambda share: at.append(time.monotonic())
    )
    loading = time.monotonic() - at[0]
    one = (at[-1] - at[1]) / (n - 1) if n > 1 else at[-1] - at[0]
    calibrate_row = max(0.0, calibration - loading) / n / len(short.tokens) if state is not None else 0.0
    loaded = own_memory()

    rows, val_rows = distinct_rows(step), distinct_rows(val)
    fewer = sub_model(model, max(1, n // 2))
    seconds: dict[int, float] = {}
    peaks: dict[int, int] = {}
    updates: dict[int, float] = {}
    watts: float | None = None
    train_step(fewer, [short])  # warm up caches and lazy choices
    for one_model in (model, fewer) if n > 1 else (model,):
        k = one_model.config.n_layers
        with peak_memory() as peak, energy() as joules:
            began = time.monotonic()
            updates[k] = train_step(one_model, step)
            seconds[k] = time.monotonic() - began - updates[k]
        peaks[k] = peak() - loaded
        used = joules()
        if used is not None and watts is None:
            watts = used / (seconds[k] + updates[k])
    evaluated: dict[int, float] = {}
    for one_model in (model, fewer) if n > 1 else (model,):
        began = time.monotonic()
        evaluate_loss(one_model, val)
        evaluated[one_model.config.n_layers] = time.monotonic() - began
    # no difference between two numbers of layers: the second would reuse memory that the first has freed
    weights = max(0, loaded - started - table_bytes(sliced.config, precision, mapped=base.maps_embedding())) / n
    memory = line(peaks)
    return Pieces(
        precision,
        Line(loading - n * one, one),
        calibrate_row,
        scaled(line(seconds), 1 / rows),
        scaled(line(evaluated), 1 / val_rows),
        line(updates),
        Line(memory.fixed + loaded - n * weights, memory.layer + weights),
        rows,
        n,
        watts,
    )


def slice_of(base: BaseModel, layers: int) -> BaseModel:
    """The base model's first `layers` layers as a model."""
    config = base.config
    return replace(base, config=config.first_layers(layers))


def sub_model(model: LoraModel, layers: int) -> LoraModel:
    """The first `layers` layers of a loaded model, sharing its weights."""
    config = model.config.first_layers(layers)
    kept = {
        name: value for name, value in model.parameters.items() if int(name.split(".")[2]) < layers
    }  # model.layers.N.…
    return LoraModel(
        config,
        model.precision,
        model.lora,
        kept,
        model.embedding,
        model.head,
        model.layers[:layers],
        {},
        model.layer_embeddings,
    )


def train_step(model: LoraModel, examples: Sequence[Example]) -> float:
    """One optimizer step as in the training loop, each example a micro-batch. Returns the seconds of its update
    alone."""
    step = GradientStep(model, examples, step=0, seed=0)
    for i in range(len(examples)):
        step.micro_batch([i])
    gradients = step.finish()
    began = time.monotonic()
    optimizer = AdamW(model.trained, 0.0)
    clip(gradients, 1.0)
    optimizer.update(gradients, 1e-9, 1)
    model.sync()
    return time.monotonic() - began


def line(values: dict[int, float] | dict[int, int]) -> Line:
    """The line through the measurements at two numbers of layers (at one: the fixed part is 0)."""
    (high, much), *rest = sorted(values.items(), reverse=True)
    if not rest:
        return Line(0.0, much / high)
    low, little = rest[0]
    layer = max(0.0, (much - little) / (high - low))
    return Line(max(0.0, much - high * layer), layer)


def scaled(one: Line, factor: float) -> Line:
    """The line multiplied by a factor."""
    return Line(one.fixed * factor, one.layer * factor)


def guess_step_seconds(config: DecoderConfig, rate: float, rows: int, layers: int) -> float:
    """The approximate time of a step over `rows` tokens on `layers` layers, from the machine's product rate."""
    linears = config.first_layers(layers).linear_weights
    head = config.vocab_size * config.hidden_size
    return 4.0 * rows * (linears + head) / (SHARE_OF_PRODUCTS * rate)


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Samples the process's own memory inside the block; yields a function for its maximum in bytes."""
    peak, end = own_memory(), threading.Event()

    def sample() -> None:
        nonlocal peak
        while not end.wait(SAMPLE_SECONDS):
            peak = max(peak, own_memory())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        end.set()
        thread.join()
