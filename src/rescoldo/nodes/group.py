"""The processes of a run, and what goes over the wire between them: plain tensors, no pickles."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rescoldo.errors import EXIT_FAILURE, RescoldoError

PATIENCE = timedelta(minutes=30)  # for a step of the slowest machine; a peer that dies is noticed at once
STEP, EVALUATE, STOP = 1, 2, 3
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Group:
    """This process's place among those of the run; rank 0 leads."""

    rank: int
    size: int


@dataclass(frozen=True)
class Command:
    """What the followers are to do.

    Attributes:
        op: STEP, EVALUATE or STOP.
        step: the optimizer step's number, for dropout.
        examples: places in the training or validation data, in the step's order.
        ranks: who computes each of them.
        weights: whether the adapter's weights follow.
    """

    op: int
    step: int = 0
    examples: Sequence[int] = ()
    ranks: Sequence[int] = ()
    weights: bool = False


def current_group() -> Group | None:
    """The group that torchrun has put this process into; None for a process of its own.

    Raises:
        RescoldoError: its environment is damaged.
    """
    size, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    if not (size.isdecimal() and rank.isdecimal() and int(rank) < int(size)):
        raise RescoldoError(f"RANK={rank}, WORLD_SIZE={size} is no place in a group", fix="start with torchrun")
    return Group(int(rank), int(size)) if int(size) > 1 else None


@contextmanager
def joined(group: Group) -> Iterator[None]:
    """Inside, the processes are connected.

    Raises:
        RescoldoError: they do not find each other, or the connection broke.
    """
    try:
        dist.init_process_group("gloo", rank=group.rank, world_size=group.size, timeout=PATIENCE)
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error).splitlines()[0][:200]
        lost = isinstance(error, dist.DistError) or any(w in text for w in ("onnection", "gloo", "Gloo", "timed out"))
        if not lost:
            raise
        raise RescoldoError(
            f"rank {group.rank} lost the others: {text}",
            fix="torchrun with --max-restarts starts again from the last checkpoint with those that are left",
            exit_code=EXIT_FAILURE,
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def send(command: Command, weights: Tensors) -> None:
    """The leader: tell all followers; `weights` go along if the command says so."""
    header = torch.tensor([command.op, command.step, len(command.examples), int(command.weights)])
    dist.broadcast(header, 0)
    if command.examples:
        dist.broadcast(torch.tensor([list(command.examples), list(command.ranks)]), 0)
    if command.weights:
        dist.broadcast(flat(weights), 0)


def receive(weights: Tensors) -> Command:
    """A follower: the next command; new weights are copied into `weights`."""
    header = torch.zeros(4, dtype=torch.int64)
    dist.broadcast(header, 0)
    op, step, count, fresh = header.tolist()
    body = torch.zeros((2, count), dtype=torch.int64)
    if count:
        dist.broadcast(body, 0)
    if fresh:
        vector = flat(weights)
        dist.broadcast(vector, 0)
        unflatten(vector, weights)
    examples, ranks = body.tolist()
    return Command(op, step, examples, ranks, bool(fresh))


def flat(tensors: Tensors) -> torch.Tensor:
    """All of them in one float32 vector, in the order of their names."""
    return torch.cat([tensors[name].detach().reshape(-1).float() for name in sorted(tensors)])


def unflatten(vector: torch.Tensor, tensors: Tensors) -> None:
    """Copy the parts of `vector` into the tensors."""
    start = 0
    with torch.no_grad():
        for name in sorted(tensors):
            count = tensors[name].numel()
            tensors[name].copy_(vector[start : start + count].view_as(tensors[name]))
            start += count


def agree(identity: Mapping[str, Any], group: Group) -> None:
    """Make sure that all processes have the same config, datasets, role and base model.

    Raises:
        RescoldoError: on each of them, naming what differs and where.
    """
    facts = {name: value for name, value in identity.items() if name not in ("surroundings", "threads")}
    names = sorted(facts)
    own = torch.stack([_digest(names), *(_digest(facts[name]) for name in names)])
    count = torch.tensor([len(own)])
    counts = [torch.zeros_like(count) for _ in range(group.size)]
    dist.all_gather(counts, count)
    if any(int(other) != len(own) for other in counts):
        raise RescoldoError("the machines do not run the same version", fix="install the same version on all of them")
    everyone = [torch.zeros_like(own) for _ in range(group.size)]
    dist.all_gather(everyone, own)
    for rank, other in enumerate(everyone):
        odd = [name for name, a, b in zip(["fields", *names], everyone[0], other, strict=True) if not torch.equal(a, b)]
        if odd:
            raise RescoldoError(
                f"rank {rank} has another {', '.join(odd)} than rank 0",
                fix="the same command, datasets, role and base model on all machines; say --quantization, not auto",
            )


def _digest(value: Any) -> torch.Tensor:
    text = json.dumps(value, sort_keys=True, default=str)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
