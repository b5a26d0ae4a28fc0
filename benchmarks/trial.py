"""One trial of the speedrun: a training run with its recipe, in this engine or in transformers + PEFT, in one process.

Each validation example's loss is kept at every point that is measured, so that recipes can be compared in pairs.
Time is the process's CPU time of training steps; validation is left out of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.candidates import GRADIENT_EXAMPLES, Muon, from_gradient
from benchmarks.tickets import write_tickets
from benchmarks.worker import Peft
from benchmarks.workloads import TRAIN, VAL
from rescoldo.base import open_base
from rescoldo.data.dataset import read_dataset
from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import LoraModel, evaluate_loss, layer_of
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import CALIBRATION_EXAMPLES, Example, LoraConfig
from rescoldo.role import get_role
from rescoldo.sweep.shared import with_adapter
from rescoldo.training.plan import shuffled

TASKS = ("ba", "tickets")


@dataclass(frozen=True)
class Trial:
    """What is trained, and how. A field that is left out has the value of the reference but for the rate."""

    task: str
    seed: int = 1
    engine: str = "rescoldo"  # or "peft"
    precision: str = "int8"
    lr: float = 1e-3
    step: int = 8  # examples an optimizer step
    epochs: float = 3.0  # ceil(epochs · examples / step) steps; the last one of an epoch has what is left of it
    warmup: float = 0.05  # a share of all steps below 1, else steps
    decay: str = "cosine"  # or linear, constant, wsd (constant, then linear in the last fifth)
    rank: int = 16
    alpha: float = 64.0
    dropout: float = 0.1
    weight_decay: float = 0.01
    beta2: float = 0.999
    clip: float = 1.0
    plus: float = 1.0  # LoRA+: B's rate as a multiple of A's
    order: str = "shuffled"  # or short: the shortest first in the first epoch
    layers: int = 0  # the last so many have an adapter; 0: all
    average: float = 0.0  # the mean of the adapter over this last share of the steps
    optimizer: str = "adamw"  # or muon (benchmarks.candidates)
    init: str = "random"  # A's values; or gradient (benchmarks.candidates)
    points: int = 1  # measurements of the validation loss, evenly over an epoch

    def __post_init__(self) -> None:
        chosen = {"task": TASKS, "engine": ("rescoldo", "peft"), "decay": ("cosine", "linear", "constant", "wsd")}
        chosen |= {"order": ("shuffled", "short"), "optimizer": ("adamw", "muon"), "init": ("random", "gradient")}
        for name, known in chosen.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: one of {', '.join(known)} was expected")

    @classmethod
    def parse(cls, line: str) -> Trial:
        """From "task=ba lr=1e-3 step=1"."""
        types = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(cls)}
        given = dict(word.partition("=")[::2] for word in line.split())
        unknown = sorted(set(given) - set(types))
        if unknown:
            raise ValueError(f"there is no setting {unknown[0]!r}: one of {', '.join(types)} was expected")
        return cls(**{name: types[name](value) for name, value in given.items()})

    def key(self) -> dict[str, Any]:
        """What tells it from other trials."""
        return asdict(self)

    def rate(self, step: int, total: int) -> float:
        """The rate of optimizer step `step`, from 0."""
        warmup = min(math.ceil(self.warmup * total) if self.warmup < 1 else int(self.warmup), total - 1)
        if step < warmup:
            return self.lr * step / max(1, warmup)
        left = (total - step) / max(1, total - warmup)
        share = {
            "cosine": 0.5 * (1.0 - math.cos(math.pi * left)),
            "linear": left,
            "constant": 1.0,
            "wsd": min(1.0, left / 0.2),
        }[self.decay]
        return self.lr * share


@dataclass(frozen=True)
class Data:
    """A task's examples in the sample model's tokens."""

    train: list[Example]
    val: list[Example]


@cache
def data(task: str, folder: Path) -> Data:
    """Read the task's examples; tickets are written to `folder` first."""
    train, val = (TRAIN, VAL) if task == "ba" else write_tickets(folder)
    role, tokenizer = get_role("ba" if task == "ba" else "generic"), open_base("sample:smollm2").tokenizer()
    return Data(*(list(read_dataset(path, role, tokenizer, 2048, None).examples) for path in (train, val)))


class Side(Protocol):
    """What trains."""

    parameters: dict[str, torch.Tensor]

    def gradients(self, examples: Sequence[Example], number: int) -> float:
        """Fill each parameter's .grad with the gradient of the examples' mean loss; return the loss."""

    def changed(self) -> None:
        """The parameters were changed."""

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, float]]:
        """Summed loss and number of targets of each, without dropout."""


class Ours:
    """This engine."""

    def __init__(self, trial: Trial, model: LoraModel) -> None:
        lora = LoraConfig(trial.rank, trial.alpha, trial.dropout, LINEARS)
        self.model, self.seed = with_adapter(model, lora, trial.seed), trial.seed
        first = model.config.n_layers - trial.layers if trial.layers else 0
        self.parameters = {n: p for n, p in self.model.parameters.items() if layer_of(n) >= first}

    def gradients(self, examples: Sequence[Example], number: int) -> float:
        run = GradientStep(self.model, examples, step=number, seed=self.seed)
        loss = sum(run.micro_batch([i]) for i in range(len(examples)))
        found = run.finish()
        for name, parameter in self.parameters.items():
            parameter.grad = found[name]
        return loss / run.total

    def changed(self) -> None:
        self.model.sync()

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, float]]:
        return evaluate_loss(self.model, examples)


class Theirs(Peft):
    """transformers + PEFT."""

    def __init__(self, trial: Trial) -> None:
        torch.manual_seed(trial.seed)
        super().__init__(
            "sample:smollm2", trial.precision, LoraConfig(trial.rank, trial.alpha, trial.dropout, LINEARS), False
        )
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def gradients(self, examples: Sequence[Example], number: int) -> float:
        self.model.train()
        total, n = 0.0, sum(e.n_targets for e in examples)
        for example in examples:
            loss: Any = self._loss(example) * (example.n_targets / n)
            loss.backward()
            total += float(loss.detach())
        return total

    def changed(self) -> None:
        self.optimizer.zero_grad()

    @torch.no_grad()
    def losses(self, examples: Sequence[Example]) -> list[tuple[float, float]]:
        self.model.eval()
        return [(float(self._loss(e)) * e.n_targets, float(e.n_targets)) for e in examples]

    def _loss(self, example: Example) -> Any:
        tokens = torch.tensor([example.tokens])
        labels = tokens.clone()
        labels[0, : example.n_prompt] = -100
        return self.model(input_ids=tokens, labels=labels, use_cache=False).loss


@cache
def frozen(task: str, precision: str, folder: Path) -> LoraModel:
    first = data(task, folder).train[:CALIBRATION_EXAMPLES]
    return LoraModel.load(open_base("sample:smollm2"), precision, None, seed=0, calibration=first)


def forget() -> None:
    """Load the weights anew for the next trial: what was measured on them holds for the kernels that were in use."""
    frozen.cache_clear()


def order(trial: Trial, examples: Sequence[Example]) -> Iterator[int]:
    """The examples, epoch after epoch, as the training loop orders them."""
    epoch = 0
    while True:
        found = shuffled(len(examples), trial.seed, epoch)
        if trial.order == "short" and not epoch:
            found.sort(key=lambda i: len(examples[i].tokens))
        yield from found
        epoch += 1


def run(trial: Trial, folder: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Train; returns the trial's settings and what was measured at each point.

    Each point has the optimizer steps, examples and tokens so far, the CPU seconds of the steps, the training loss
    since the last point, the mean validation loss and each validation example's (nats, targets).
    """
    examples = data(trial.task, folder)
    side: Side = Theirs(trial) if trial.engine == "peft" else Ours(trial, frozen(trial.task, trial.precision, folder))
    update = optimizer(trial, side.parameters)
    wanted = round(trial.epochs * len(examples.train))
    total = math.ceil(wanted / trial.step)
    every = max(1, round(len(examples.train) / trial.step / trial.points))
    following, done, tokens, spent, losses = order(trial, examples.train), 0, 0, 0.0, []
    mean: dict[str, torch.Tensor] = {}
    averaged, first = 0, total - max(1, round(trial.average * total))
    found: list[dict[str, Any]] = []
    if trial.init == "gradient":
        group = [examples.train[i] for i in islice(order(trial, examples.train), GRADIENT_EXAMPLES)]
        began = time.process_time()
        from_gradient(side.parameters, partial(_fill, side, group))
        side.changed()
        spent += time.process_time() - began
    for number in range(total):
        left_in_epoch = len(examples.train) - done % len(examples.train)
        group = [examples.train[next(following)] for _ in range(min(trial.step, left_in_epoch))]
        began = time.process_time()
        losses.append(side.gradients(group, number))
        torch.nn.utils.clip_grad_norm_(side.parameters.values(), trial.clip)
        update(trial.rate(number, total))
        side.changed()
        if trial.average and number >= first:
            averaged += 1
            for name, p in side.parameters.items():
                mean[name] = mean[name].lerp_(p.detach(), 1 / averaged) if name in mean else p.detach().clone()
        spent += time.process_time() - began
        done, tokens = done + len(group), tokens + sum(len(e.tokens) for e in group)
        last = number == total - 1
        if last or (number + 1) % every == 0:
            held = _put(side, mean) if mean and last else {}
            val = side.losses(examples.val)
            if held:
                _put(side, held)
            loss = sum(nats for nats, _ in val) / sum(n for _, n in val)
            point = {"steps": number + 1, "examples": done, "tokens": tokens, "cpu_seconds": spent, "val_loss": loss}
            found.append({**point, "train_loss": sum(losses) / len(losses), "val": val})
            losses = []
            say(f"step {number + 1} of {total}: validation loss {loss:.4f}, {spent:.0f} CPU s")
    return {"trial": trial.key(), "points": found}


def optimizer(trial: Trial, parameters: dict[str, torch.Tensor]) -> Callable[[float], None]:
    """What changes the parameters, given the rate of A."""
    if trial.optimizer == "muon":
        return Muon(parameters, trial.plus).step
    a, b = ([p for name, p in parameters.items() if f"lora_{which}" in name] for which in "AB")
    adamw = torch.optim.AdamW(
        [{"params": a}, {"params": b}], lr=trial.lr, betas=(0.9, trial.beta2), weight_decay=trial.weight_decay
    )

    def update(rate: float) -> None:
        for group, times in zip(adamw.param_groups, (1.0, trial.plus), strict=True):
            group["lr"] = rate * times
        adamw.step()

    return update


def _fill(side: Side, group: Sequence[Example]) -> None:
    """Put the gradients of the group's loss into the parameters, as they are now."""
    side.changed()
    side.gradients(group, 0)


@torch.no_grad()
def _put(side: Side, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put values into the parameters; returns what they were."""
    before = {name: p.detach().clone() for name, p in side.parameters.items()}
    for name, p in side.parameters.items():
        p.copy_(values[name])
    side.changed()
    return before
