"""A follower's side: hold model and data, compute what the leader asks for, write nothing."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from rescoldo.nodes.group import EVALUATE, STOP, Command, Group, agree, flat, receive
from rescoldo.train.config import RunConfig
from rescoldo.train.parts import Model, Parts, lora_config
from rescoldo.train.prepare import Prepared, prepare
from rescoldo.train.progress import Reporter


def follow(config: RunConfig, parts: Parts, group: Group, reporter: Reporter) -> int:
    """Work for the leader until it says that the run has ended. Returns how many commands were carried out.

    Raises:
        RescoldoError: this machine has other data or settings than the leader, or lost it.
    """
    prepared = prepare(config, parts, reporter, restart=False)
    agree(prepared.identity, group)
    reporter.say(f"  rank {group.rank} of {group.size} follows: it computes, rank 0 writes")
    config = prepared.config
    torch.set_num_threads(config.threads or 1)
    from rescoldo.train.start import CALIBRATION_EXAMPLES

    model = parts.load_model(
        prepared.base,
        config.quantization,
        lora_config(config),
        seed=config.seed,
        calibration=prepared.train.examples[:CALIBRATION_EXAMPLES],
        frozen_state=None,
        on_progress=None,
    )
    done = 0
    while (command := receive(model.parameters)).op != STOP:
        if command.weights:
            model.sync()
        if command.op == EVALUATE:
            _evaluate(command, prepared, parts, group, model)
        else:
            _step(command, prepared, parts, group, model)
        done += 1
    return done


def _step(command: Command, prepared: Prepared, parts: Parts, group: Group, model: Model) -> None:
    """This machine's examples of a step; all of them are named: dropout and shared prefix depend on the whole step."""
    config = prepared.config
    examples = [prepared.train.examples[i] for i in command.examples]
    mine = [place for place, rank in enumerate(command.ranks) if rank == group.rank]
    began = time.monotonic()
    step: Any = parts.gradient_step(model, examples, step=command.step, seed=config.seed)
    nats = 0.0
    for start in range(0, len(mine), config.batch_size):
        nats += step.micro_batch(mine[start : start + config.batch_size])
    gradients = step.finish()
    figures = torch.zeros((group.size, 3), dtype=torch.float64)
    tokens = sum(len(examples[i].tokens) for i in mine)
    figures[group.rank] = torch.tensor([nats, tokens, time.monotonic() - began])
    dist.reduce(flat(gradients), 0)
    dist.reduce(figures, 0)


def _evaluate(command: Command, prepared: Prepared, parts: Parts, group: Group, model: Model) -> None:
    examples = [prepared.val.examples[i] for i in command.examples]
    mine = [place for place, rank in enumerate(command.ranks) if rank == group.rank]
    nats = torch.zeros(len(examples), dtype=torch.float64)
    found = parts.evaluate_loss(model, [examples[i] for i in mine]) if mine else []
    for i, (loss, _) in zip(mine, found, strict=True):
        nats[i] = loss
    dist.reduce(nats, 0)
