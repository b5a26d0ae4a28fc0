"""The interface between the training loop and the rest of the program: base model, data and engine as a few functions.

The loop depends on these types only. Tests replace them by a small deterministic engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from rescoldo.base.model import BaseModel
from rescoldo.data.dataset import Dataset
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.engine.weights import Tensors
from rescoldo.training.config import RunConfig
from rescoldo.training.optimizer import AdamW


class Model(Protocol):
    """The part of engine.model.LoraModel that the loop uses."""

    parameters: Tensors

    @property
    def trained(self) -> Tensors:
        """Those of `parameters` that have gradients and moments."""

    def frozen_state(self) -> Tensors:
        """The tensors that resuming needs in addition to the base model."""

    def sync(self) -> None:
        """Apply changes of `parameters`; must be called after each change."""


class Step(Protocol):
    """The part of engine.step.GradientStep that the loop uses."""

    def micro_batch(self, indices: list[int]) -> float:
        """Add the gradients of these examples of the step; return their summed loss in nats."""

    def finish(self) -> Tensors:
        """Gradients by parameter key."""

    def state(self) -> Tensors:
        """Gradients accumulated so far."""

    def load_state(self, state: Tensors) -> None:
        """Restore accumulated gradients."""


class Losses(Protocol):
    """What the loop uses of engine.losses_before.LossesBefore."""

    def read(self) -> list[tuple[float, ...]] | None:
        """The losses before the training where they are known, as evaluate_loss returns them."""

    def write(self, losses: Sequence[tuple[float, ...]]) -> None:
        """Keep them for other runs."""


class NoLosses:
    """Nothing is known and nothing is kept."""

    def read(self) -> None:
        """See Losses."""

    def write(self, losses: Sequence[tuple[float, ...]]) -> None:
        """See Losses."""


@dataclass(frozen=True)
class Parts:
    """The functions that the loop calls."""

    open_base: Callable[[str], BaseModel]
    read_dataset: Callable[..., Dataset]  # as data.dataset.read_dataset, with the `records` from check_dataset
    load_model: Callable[..., Model]  # as LoraModel.load
    gradient_step: Callable[..., Step]  # as GradientStep; `mine` and `on_ready` with several machines only
    evaluate_loss: Callable[[Any, list[Example]], list[tuple[float, float]]]  # as engine.model.evaluate_loss
    save_tokenizer: Callable[[Any, Path], object]
    losses_before: Callable[..., Losses] = lambda base, model, examples: NoLosses()  # as engine's LossesBefore
    check_dataset: Callable[..., Any] = lambda path, role, form="answers": None  # as data.forms.check_dataset
    preflight: Callable[[Any, Any, bool], None] = lambda prepared, reporter, force: None  # as doctor.preflight
    stay_awake: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True)  # as run.awake.awake
    expected_rate: Callable[[RunConfig], float | None] = lambda config: None  # as doctor.rate
    run_date: Callable[[date], date] = lambda day: day  # the date in the prompts, the same on all machines
    optimizer: Callable[[Tensors, float, float], AdamW] = AdamW  # trained tensors, weight decay, LoRA+'s ratio
    resumable_steps: bool = True  # whether an unfinished step can be saved
    machines: int = 1
    write_report: Callable[[Path, Callable[[str], None]], None] = lambda output, warn: None


def lora_config(config: RunConfig, n_layers: int) -> LoraConfig:
    """The engine's LoRA settings of this run, for a model with `n_layers` layers."""
    layers = config.lora_layers
    if isinstance(layers, int):
        layers = tuple(range(n_layers))[-layers:]
    return LoraConfig(
        config.lora_r,
        config.lora_alpha,
        config.lora_dropout,
        config.lora_targets,
        kind=config.adapter,
        ranks=config.lora_ranks,
        alphas=config.lora_alphas,
        layers=None if layers is None or len(layers) == n_layers else layers,
    )
