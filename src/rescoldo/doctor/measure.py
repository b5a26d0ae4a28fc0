"""The time and memory of a few layers of a model, measured with the engine that trains: what a plan is made from.

The layers of most models have the same shapes. So a slice of them tells what one layer costs, and what is left over
(the head, the embeddings) is paid once. Where they differ, the cost is taken to grow with a layer's weights.
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

CALIBRATION_ROWS = 96  # tokens of the example that int8's calibration is timed with
SHARE_OF_PRODUCTS = 0.25  # of the best product rate that a step reaches at least; for guessing before measuring
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Line:
    """What something costs as a function of the number of layers: `fixed` + layers · `layer`."""

    fixed: float
    layer: float

    def at(self, layers: int) -> float:
        """The cost with that many layers, never negative."""
        return max(0.0, self.fixed + layers * self.layer)


@dataclass(frozen=True)
class Pieces:
    """What was measured in one precision. Seconds, bytes, watts.

    Attributes:
        load: building the model without calibration.
        calibrate_row: int8's and nf4's calibration, one token through one layer; 0 in the other precisions.
        row: forward and backward of one token (distinct within its step); the head's part is in `fixed`.
        evaluate_row: forward of one token.
        update: the optimizer's step.
        memory: the process's own memory at the peak of a step over `rows` tokens, all of its layers kept.
        rows: tokens of the measured step.
        layers: how many were loaded.
        watts: of the processor's packages during the step, None where the system does not tell.
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
        """The same by a layer of the whole model, by the weights of its linears: where layers differ, those measured,
        the lowest, may be smaller than the others."""
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
    """Tokens that one optimizer step over these examples computes, common beginnings once."""
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
    """Load `layers` layers, run a step over `step` and an evaluation of `val` on all of them and on fewer.

    Args:
        lora: put on all layers that are measured, whichever have an adapter in the run.
        step: the examples of the measured step.
        val: the examples of the measured evaluation.
        layers: at least 2 where the model has as many.
    """
    kernels()  # compiled at the first use: not to be taken for the calibration's time
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
    train_step(fewer, [short])  # caches, just-in-time choices
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
    # not measured between two layers: the second takes memory that the first has left
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
    """The base model's first `layers` layers as a model of its own."""
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
    """One optimizer step as the loop does it, each example a micro-batch. Returns the seconds of its update alone."""
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
    """The line through what was measured at two numbers of layers (one: all of it is the layers')."""
    (high, much), *rest = sorted(values.items(), reverse=True)
    if not rest:
        return Line(0.0, much / high)
    low, little = rest[0]
    layer = max(0.0, (much - little) / (high - low))
    return Line(max(0.0, much - high * layer), layer)


def scaled(one: Line, factor: float) -> Line:
    """The line times a factor."""
    return Line(one.fixed * factor, one.layer * factor)


def guess_step_seconds(config: DecoderConfig, rate: float, rows: int, layers: int) -> float:
    """About how long a step over `rows` tokens takes on `layers` layers, from the rate of the machine's products."""
    linears = config.first_layers(layers).linear_weights
    head = config.vocab_size * config.hidden_size
    return 4.0 * rows * (linears + head) / (SHARE_OF_PRODUCTS * rate)


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Inside, the process's own memory is sampled; what is yielded tells the most there was."""
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
