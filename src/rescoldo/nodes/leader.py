"""The leader's side: the loop's parts, with the work of each step and evaluation dealt out to all machines."""

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

REPEAT_SECONDS = 600.0  # a slow machine is named again after this
LEARNING_STEPS = 3  # before speeds are judged


class Leader:
    """What rank 0 knows of the others: how fast they are, and whether they have the current weights."""

    def __init__(self, parts: Parts, group: Group) -> None:
        self.own, self.group = parts, group
        self.speeds = list(group.shares) or [0.0] * group.size
        self.optimizer: AdamW | None = None
        self._stepping = False  # the followers have weights and optimizer as they are here, and change them alike
        self._evaluating = False  # they have the very weights
        self._places: dict[int, int] = {}  # id of an example → its place in its dataset
        self._reporter: Any = None
        self._steps = 0
        self._named: dict[int, float] = {}  # slow machine → when it was named

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
        """The machine's own checks, then: has everybody the same?"""
        self.own.preflight(prepared, reporter, force)
        agree(prepared.identity, self.group)
        for data in (prepared.train, prepared.val):
            self._places.update({id(example): place for place, example in enumerate(data.examples)})
        self._reporter = reporter
        names = ", ".join(self.group.name(rank) for rank in range(self.group.size))
        reporter.say(f"  {count(self.group.size, 'machine')} in this run ({names}); this one leads")

    def gradient_step(self, model: Model, examples: list[Example], *, step: int, seed: int) -> Step:
        """A step whose examples are dealt out."""
        return SharedStep(self, model, examples, step, seed)

    def make_optimizer(self, parameters: Tensors, weight_decay: float, plus: float) -> AdamW:
        """An optimizer that has the followers do what it does."""
        self.optimizer = SharedAdamW(self, parameters, weight_decay, plus)
        return self.optimizer

    def evaluate_loss(self, model: Any, examples: list[Example]) -> list[tuple[float, float]]:
        """As engine.model.evaluate_loss, each machine its share."""
        ranks, _ = self.deal(EVALUATE, model, examples, 0)
        mine = [i for i, rank in enumerate(ranks) if rank == self.group.rank]
        nats = torch.zeros(len(examples), dtype=torch.float64)
        found = self.own.evaluate_loss(model, [examples[i] for i in mine]) if mine else []
        for i, (loss, _) in zip(mine, found, strict=True):
            nats[i] = loss
        dist.reduce(nats, self.group.leader)
        return [(loss, example.total_weight) for loss, example in zip(nats.tolist(), examples, strict=True)]

    def deal(self, op: int, model: Model, examples: Sequence[Example], step: int) -> tuple[list[int], list[float]]:
        """Tell the followers what to do; returns each example's rank, and each rank's work in tokens."""
        load = load_of(examples, share=getattr(model, "share_prefix", False))
        ranks = assign(load, self.speeds)
        places = [self._places[id(example)] for example in examples]
        send(Command(op, step, examples=places, ranks=ranks), self._stale(op, model), self.group.leader)
        return ranks, load.of(ranks, self.group.size)

    def update(self, rate: float, step: int) -> None:
        """Have the followers change their weights by the gradients that they have summed."""
        send(Command(UPDATE, step, rate), {}, self.group.leader)
        self._evaluating = False

    def _stale(self, op: int, model: Model) -> Tensors:
        """What the followers need of this machine. All of it once; after that they make each change themselves. Before
        each evaluation the weights again, since other processors may round a last bit otherwise."""
        if not self._stepping:
            self._stepping = self._evaluating = True
            return {**model.parameters, **(self.optimizer.state() if self.optimizer else {})}
        if op == EVALUATE and not self._evaluating:
            self._evaluating = True
            return model.parameters
        return {}

    def step_done(self, work: Sequence[float], seconds: Sequence[float], signals: Sequence[float]) -> None:
        """Learn from a step: how fast each machine is, and whether one wants to leave."""
        if not self.group.shares:
            self.speeds = measured(self.speeds, work, seconds)
            self._steps += 1
            for rank in slow_ones(self.speeds) if self._steps > LEARNING_STEPS else ():
                if time.monotonic() - self._named.get(rank, float("-inf")) >= REPEAT_SECONDS:
                    self._named[rank] = time.monotonic()
                    fast = max(self.speeds)
                    self._reporter.warn(
                        f"{self.group.name(rank)} is slow: {self.speeds[rank]:.0f} tokens/s where the fastest does "
                        f"{fast:.0f}; it gets less to do\n    → `{program()} doctor` there says why; "
                        "Ctrl-C there takes it out of the run"
                    )
        if any(signals):
            names = ", ".join(self.group.name(rank) for rank, number in enumerate(signals) if number)
            self._reporter.say(f"  {names} leaves or machines join: saving, then continuing with those that are there")
            signal.raise_signal(signal.SIGTERM)  # the loop saves behind this step

    def stop(self, *, over: bool) -> None:
        """The end of this process's work, for the followers too; `over`: of the run."""
        send(Command(STOP if over else AGAIN), {}, self.group.leader)


class SharedAdamW(AdamW):
    """AdamW whose every step the followers make too, each on its own weights: the sum of the gradients is everywhere,
    so no weights need to come back over the wire."""

    def __init__(self, leader: Leader, parameters: Tensors, weight_decay: float, plus: float = 1.0) -> None:
        super().__init__(parameters, weight_decay, plus)
        self._leader = leader

    def update(self, gradients: Tensors, lr: float, step: int) -> None:
        """As AdamW.update, everywhere."""
        self._leader.update(lr, step)
        super().update(gradients, lr, step)


class SharedStep:
    """A GradientStep over all machines. Its gradients are summed once, while the last backward pass is running."""

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
        """The leader's own of these examples; the loss of the others comes with `finish`."""
        mine = [i for i in indices if self._ranks[i] == self._leader.group.rank]
        if not mine:
            return 0.0
        began = time.monotonic()
        nats = self._inner.micro_batch(mine)
        self._seconds += time.monotonic() - began
        return nats

    def finish(self) -> Tensors:
        """The gradients of all machines together; fills `nats_elsewhere`."""
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
        """Nothing: with several machines a run is saved between steps (Parts.resumable_steps)."""
        return {}

    def load_state(self, state: Tensors) -> None:
        """A step that one machine had begun is started again: see Loop."""
