"""The leader: the loop's parts, with the work of each step and evaluation divided among all machines."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from rescoldo.engine.types import Example
from rescoldo.engine.weights import Tensors
from rescoldo.invocation import program
from rescoldo.nodes.group import AGAIN, EVALUATE, STEP, STOP, UPDATE, Command, Group, agree, leaders_date, send
from rescoldo.nodes.reducer import Reducer
from rescoldo.nodes.share import assign, load_of, measured, slow_ones
from rescoldo.training.optimizer import AdamW
from rescoldo.training.parts import Model, Parts, Step
from rescoldo.units import count

REPEAT_SECONDS = 600.0  # minimum time between two warnings about a slow machine
LEARNING_STEPS = 3  # steps before speeds are judged


class Leader:
    """What rank 0 knows about the others: their speeds, and whether they have the current weights."""

    def __init__(self, parts: Parts, group: Group) -> None:
        self.own, self.group = parts, group
        self.speeds = list(group.shares) or [0.0] * group.size
        self.optimizer: AdamW | None = None
        self._stepping = False  # the followers have these weights and optimizer, and update them in the same way
        self._evaluating = False  # they have exactly these weights
        self._places: dict[int, int] = {}  # id of an example → its index in its dataset
        self._reporter: Any = None
        self._steps = 0
        self._named: dict[int, float] = {}  # slow machine → time of the last warning about it

    def parts(self) -> Parts:
        """Parts for the loop."""
        return replace(
            self.own,
            preflight=self.preflight,
            run_date=partial(leaders_date, group=self.group),
            gradient_step=self.gradient_step,
            optimizer=self.make_optimizer,
            evaluate_loss=self.evaluate_loss,
            resumable_steps=False,
            machines=self.group.size,
        )

    def preflight(self, prepared: Any, reporter: Any, force: bool) -> None:
        """The checks of this machine, and then whether all machines have the same data and settings."""
        self.own.preflight(prepared, reporter, force)
        agree(prepared.identity, self.group)
        for data in (prepared.train, prepared.val):
            self._places.update({id(example): place for place, example in enumerate(data.examples)})
        self._reporter = reporter
        names = ", ".join(self.group.name(rank) for rank in range(self.group.size))
        reporter.say(f"  {count(self.group.size, 'machine')} in this run ({names}); this one leads")

    def gradient_step(self, model: Model, examples: list[Example], *, step: int, seed: int) -> Step:
        """A step whose examples are divided among the machines."""
        return SharedStep(self, model, examples, step, seed)

    def make_optimizer(self, parameters: Tensors, weight_decay: float, plus: float) -> AdamW:
        """An optimizer whose updates the followers make, too."""
        self.optimizer = SharedAdamW(self, parameters, weight_decay, plus)
        return self.optimizer

    def evaluate_loss(self, model: Any, examples: list[Example]) -> list[tuple[float, float]]:
        """As engine.model.evaluate_loss, divided among the machines."""
        ranks, _ = self.deal(EVALUATE, model, examples, 0)
        mine = [i for i, rank in enumerate(ranks) if rank == self.group.rank]
        nats = torch.zeros(len(examples), dtype=torch.float64)
        found = self.own.evaluate_loss(model, [examples[i] for i in mine]) if mine else []
        for i, (loss, _) in zip(mine, found, strict=True):
            nats[i] = loss
        dist.reduce(nats, self.group.leader)
        return [(loss, example.total_weight) for loss, example in zip(nats.tolist(), examples, strict=True)]

    def deal(self, op: int, model: Model, examples: Sequence[Example], step: int) -> tuple[list[int], list[float]]:
        """Send the followers their work; returns each example's rank, and each rank's work in tokens."""
        load = load_of(examples, share=getattr(model, "share_prefix", False))
        ranks = assign(load, self.speeds)
        places = [self._places[id(example)] for example in examples]
        send(Command(op, step, examples=places, ranks=ranks), self._stale(op, model), self.group.leader)
        return ranks, load.of(ranks, self.group.size)

    def update(self, rate: float, step: int) -> None:
        """Make the followers update their weights with the summed gradients."""
        send(Command(UPDATE, step, rate), {}, self.group.leader)
        self._evaluating = False

    def _stale(self, op: int, model: Model) -> Tensors:
        """The tensors that the followers need: all of them once; after that they make each update themselves. The
        weights are sent again before each evaluation, because other processors may round differently in the last
        bit."""
        if not self._stepping:
            self._stepping = self._evaluating = True
            return {**model.parameters, **(self.optimizer.state() if self.optimizer else {})}
        if op == EVALUATE and not self._evaluating:
            self._evaluating = True
            return model.parameters
        return {}

    def step_done(self, work: Sequence[float], seconds: Sequence[float], signals: Sequence[float]) -> None:
        """Update the speeds after a step, and check whether a machine wants to leave."""
        if not self.group.shares:
            self.speeds = measured(self.speeds, work, seconds)
            self._steps += 1
            for rank in slow_ones(self.speeds) if self._steps > LEARNING_STEPS else ():
                if time.monotonic() - self._named.get(rank, float("-inf")) >= REPEAT_SECONDS:
                    self._named[rank] = time.monotonic()
                    fast = max(self.speeds)
                    self._reporter.warn(
                        f"{self.group.name(rank)} is slow: {self.speeds[rank]:.0f} tokens/s, the fastest machine has "
                        f"{fast:.0f}; it gets less work\n    → `{program()} doctor` there shows why; "
                        "Ctrl-C there takes it out of the run"
                    )
        if any(signals):
            names = ", ".join(self.group.name(rank) for rank, number in enumerate(signals) if number)
            self._reporter.say(f"  {names} leaves or machines join: saving, then continuing with the remaining ones")
            signal.raise_signal(signal.SIGTERM)  # the loop saves after this step

    def stop(self, *, over: bool) -> None:
        """End the followers' work; `over`: the run has ended."""
        send(Command(STOP if over else AGAIN), {}, self.group.leader)


class SharedAdamW(AdamW):
    """AdamW whose updates the followers make, too, each on its own weights: all machines have the summed gradients, so
    no weights need to be sent."""

    def __init__(self, leader: Leader, parameters: Tensors, weight_decay: float, plus: float = 1.0) -> None:
        super().__init__(parameters, weight_decay, plus)
        self._leader = leader

    def update(self, gradients: Tensors, lr: float, step: int) -> None:
        """As AdamW.update, on all machines."""
        self._leader.update(lr, step)
        super().update(gradients, lr, step)


class SharedStep:
    """A GradientStep over all machines. Its gradients are all-reduced while the last backward pass is running."""

    def __init__(self, leader: Leader, model: Model, examples: list[Example], step: int, seed: int) -> None:
        self._leader = leader
        self._ranks, self._work = leader.deal(STEP, model, examples, step)
        self._reducer = Reducer(model.trained)
        mine = [i for i, rank in enumerate(self._ranks) if rank == leader.group.rank]
        self._inner: Step = leader.own.gradient_step(
            model, examples, step=step, seed=seed, mine=mine, on_ready=self._reducer.ready
        )
        self._seconds = 0.0
        self.nats_elsewhere = 0.0

    def micro_batch(self, indices: list[int]) -> float:
        """Compute the leader's part of these examples; the losses of the others come with `finish`."""
        mine = [i for i in indices if self._ranks[i] == self._leader.group.rank]
        if not mine:
            return 0.0
        began = time.monotonic()
        nats = self._inner.micro_batch(mine)
        self._seconds += time.monotonic() - began
        return nats

    def finish(self) -> Tensors:
        """The sum of all machines' gradients; sets `nats_elsewhere`."""
        leader = self._leader
        began = time.monotonic()
        gradients = self._inner.finish()
        figures = torch.zeros((leader.group.size, 3), dtype=torch.float64)  # nats, seconds, signal of each rank
        figures[leader.group.rank, 1] = self._seconds + time.monotonic() - began
        self._reducer.wait()
        dist.reduce(figures, leader.group.leader)
        nats, seconds, signals = figures.T.tolist()
        self.nats_elsewhere = sum(nats)
        leader.step_done(self._work, seconds, signals)
        return gradients

    def state(self) -> Tensors:
        """Empty: with several machines a run is saved between steps only (Parts.resumable_steps)."""
        return {}

    def load_state(self, state: Tensors) -> None:
        """Nothing: a step that a single machine had begun is started again; see Loop."""
