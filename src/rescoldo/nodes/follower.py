"""A follower: it has model, optimizer and data, computes what the leader requests, and writes nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist

from rescoldo.engine.weights import Tensors
from rescoldo.nodes.group import AGAIN, EVALUATE, STOP, UPDATE, Command, Group, agree, leaders_date, receive
from rescoldo.nodes.reducer import Reducer
from rescoldo.run.signals import SIGNALS
from rescoldo.training.config import RunConfig
from rescoldo.training.optimizer import AdamW, clip
from rescoldo.training.parts import Model, Parts, lora_config
from rescoldo.training.prepare import Prepared, prepare
from rescoldo.training.progress import Reporter

STOP_SECONDS = 20.0  # time for torchrun to end this worker before it starts another


class Leaving:
    """Notes a signal: this process continues, reports the signal with its next gradients, and is released when the
    leader has saved."""

    def __init__(self) -> None:
        self.signal = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        self.signal = self.signal or number


@contextmanager
def leaving() -> Iterator[Leaving]:
    """Inside the block, signals are only noted."""
    noted = Leaving()
    before = {number: signal.signal(number, noted.handle) for number in SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(config: RunConfig, parts: Parts, group: Group, reporter: Reporter) -> int:
    """Work for the leader until it announces the end of the run.

    Returns:
        0 at the end of the run; otherwise the signal that made this process, or another one, leave: the run continues.

    Raises:
        RescoldoError: this machine has other data or settings than the leader, or has lost it.
    """
    parts = replace(parts, run_date=partial(leaders_date, group=group))
    prepared = prepare(config, parts, reporter, restart=False)
    agree(prepared.identity, group)
    reporter.say(f"  this machine computes; {group.name(group.leader)} leads and writes ({group.size} machines)")
    config = prepared.config
    torch.set_num_threads(config.threads or 1)
    from rescoldo.engine.types import CALIBRATION_EXAMPLES

    model = parts.load_model(
        prepared.base,
        config.quantization,
        lora_config(config, prepared.base.config.n_layers),
        seed=config.seed,
        calibration=prepared.train.examples[:CALIBRATION_EXAMPLES],
        frozen_state=None,
        on_progress=None,
    )
    optimizer = AdamW(model.trained, config.weight_decay, config.lora_plus or 1.0)
    gradients: Tensors = {}
    with leaving() as noted:
        while (command := receive(model.parameters, optimizer.state(), group.leader)).op not in (STOP, AGAIN):
            if command.tensors:
                model.sync()
            if command.op == EVALUATE:
                _evaluate(command, prepared, parts, group, model)
            elif command.op == UPDATE:
                clip(gradients, config.max_grad_norm)
                optimizer.update(gradients, command.rate, command.step)
                model.sync()
            else:
                gradients = _step(command, prepared, parts, group, model, noted)
        if command.op == STOP:
            return 0
        until = time.monotonic() + STOP_SECONDS
        while not noted.signal and time.monotonic() < until:
            time.sleep(0.1)
        return noted.signal or signal.SIGTERM


def _step(command: Command, prepared: Prepared, parts: Parts, group: Group, model: Model, noted: Leaving) -> Tensors:
    """Compute this machine's examples of a step; the command names all of the step's examples, which dropout and shared
    prefix depend on. Returns the sum of all machines' gradients."""
    config = prepared.config
    examples = [prepared.train.examples[i] for i in command.examples]
    mine = [place for place, rank in enumerate(command.ranks) if rank == group.rank]
    began = time.monotonic()
    reducer = Reducer(model.trained)
    step = parts.gradient_step(model, examples, step=command.step, seed=config.seed, mine=mine, on_ready=reducer.ready)
    nats = 0.0
    for start in range(0, len(mine), config.batch_size):
        nats += step.micro_batch(mine[start : start + config.batch_size])
    gradients = step.finish()
    figures = torch.zeros((group.size, 3), dtype=torch.float64)
    figures[group.rank] = torch.tensor([nats, time.monotonic() - began, noted.signal])
    reducer.wait()
    dist.reduce(figures, group.leader)
    return gradients


def _evaluate(command: Command, prepared: Prepared, parts: Parts, group: Group, model: Model) -> None:
    examples = [prepared.val.examples[i] for i in command.examples]
    mine = [place for place, rank in enumerate(command.ranks) if rank == group.rank]
    nats = torch.zeros(len(examples), dtype=torch.float64)
    found = parts.evaluate_loss(model, [examples[i] for i in mine]) if mine else []
    for i, (loss, _) in zip(mine, found, strict=True):
        nats[i] = loss
    dist.reduce(nats, group.leader)
