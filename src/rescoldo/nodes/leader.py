"""The leader's side: the loop's parts, with the work of each step and evaluation dealt out to all machines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rescoldo.engine.types import Example
from rescoldo.nodes.group import EVALUATE, STEP, STOP, Command, Group, agree, flat, send, unflatten
from rescoldo.nodes.share import assign, measured
from rescoldo.role import Role
from rescoldo.train.parts import Dataset, Model, Parts, Step, Tensors


@contextmanager
def leading(parts: Parts, group: Group) -> Iterator[Parts]:
    """Parts for the loop of rank 0; when the block ends well the followers are sent home. Otherwise the connection
    breaks, which tells them too: they may be in the midst of anything."""
    leader = Leader(parts, group)
    yield replace(
        parts,
        read_dataset=leader.read_dataset,
        preflight=leader.preflight,
        gradient_step=leader.gradient_step,
        evaluate_loss=leader.evaluate_loss,
        resumable_steps=False,
    )
    leader.stop()


class Leader:
    """What rank 0 knows of the others: how fast they are, and whether they have the current weights."""

    def __init__(self, parts: Parts, group: Group) -> None:
        self.own, self.group = parts, group
        self.speeds = [0.0] * group.size
        self.fresh = False  # the followers have the weights that the model has now
        self._places: dict[int, int] = {}  # id of an example → its place in its dataset

    def read_dataset(self, path: Path, role: Role, tokenizer: Any, max_length: int, limit: int | None) -> Dataset:
        """As Parts.read_dataset, noting where each example stands."""
        data = self.own.read_dataset(path, role, tokenizer, max_length, limit)
        self._places.update({id(example): place for place, example in enumerate(data.examples)})
        return data

    def preflight(self, prepared: Any, reporter: Any, force: bool) -> None:
        """The machine's own checks, then: has everybody the same?"""
        self.own.preflight(prepared, reporter, force)
        agree(prepared.identity, self.group)
        reporter.say(f"  {self.group.size} machines work on this run; this one leads")

    def gradient_step(self, model: Model, examples: list[Example], *, step: int, seed: int) -> Step:
        """A step whose examples are dealt out."""
        inner = self.own.gradient_step(model, examples, step=step, seed=seed)
        return SharedStep(self, model, inner, examples, step)

    def evaluate_loss(self, model: Any, examples: list[Example]) -> list[tuple[float, int]]:
        """As engine.model.evaluate_loss, each machine its share."""
        ranks = self.deal(EVALUATE, model, examples, 0)
        mine = [i for i, rank in enumerate(ranks) if rank == 0]
        nats = torch.zeros(len(examples), dtype=torch.float64)
        found = self.own.evaluate_loss(model, [examples[i] for i in mine]) if mine else []
        for i, (loss, _) in zip(mine, found, strict=True):
            nats[i] = loss
        dist.reduce(nats, 0)
        return [(loss, example.n_targets) for loss, example in zip(nats.tolist(), examples, strict=True)]

    def deal(self, op: int, model: Model, examples: Sequence[Example], step: int) -> list[int]:
        """Tell the followers what to do; returns each example's rank."""
        ranks = assign([len(example.tokens) for example in examples], self.speeds)
        places = [self._places[id(example)] for example in examples]
        send(Command(op, step, places, ranks, weights=not self.fresh), model.parameters)
        self.fresh = True
        return ranks

    def stop(self) -> None:
        """The end, for the followers too."""
        send(Command(STOP), {})


class SharedStep:
    """A GradientStep over all machines. Its gradients are summed once, at the end, on the leader."""

    def __init__(self, leader: Leader, model: Model, inner: Step, examples: list[Example], step: int) -> None:
        self._leader, self._inner, self._examples = leader, inner, examples
        self._ranks = leader.deal(STEP, model, examples, step)
        self._tokens, self._seconds = 0, 0.0
        self.nats_elsewhere = 0.0

    def micro_batch(self, indices: list[int]) -> float:
        """The leader's own of these examples; the loss of the others comes with `finish`."""
        mine = [i for i in indices if self._ranks[i] == 0]
        if not mine:
            return 0.0
        began = time.monotonic()
        nats = self._inner.micro_batch(mine)
        self._seconds += time.monotonic() - began
        self._tokens += sum(len(self._examples[i].tokens) for i in mine)
        return nats

    def finish(self) -> Tensors:
        """The gradients of all machines together; fills `nats_elsewhere`."""
        leader = self._leader
        began = time.monotonic()
        gradients = self._inner.finish()
        figures = torch.zeros((leader.group.size, 3), dtype=torch.float64)  # nats, tokens, seconds of each rank
        figures[0] = torch.tensor([0.0, self._tokens, self._seconds + time.monotonic() - began])
        total = flat(gradients)
        dist.reduce(total, 0)
        dist.reduce(figures, 0)
        unflatten(total, gradients)
        nats, tokens, seconds = figures.T.tolist()
        self.nats_elsewhere = sum(nats)
        leader.speeds = measured(leader.speeds, tokens, seconds)
        leader.fresh = False  # the loop changes the weights now
        return gradients

    def state(self) -> Tensors:
        """Nothing: with several machines a run is saved between steps (Parts.resumable_steps)."""
        return {}

    def load_state(self, state: Tensors) -> None:
        """A step that one machine had begun is begun anew: see Loop."""
