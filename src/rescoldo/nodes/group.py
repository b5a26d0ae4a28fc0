"""The processes of a run and their communication: plain tensors, no pickles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import torch
import torch.distributed as dist

# Functions in this module have the default group at the time of import as a default argument: none yet. If another
# library imported it later, they would keep that group and its threads, which at exit want the interpreter to release
# a tensor, and abort.
import torch.distributed.nn
from torch._C._distributed_c10d import TCPStore

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.invocation import program
from rescoldo.nodes.place import current_folder

PATIENCE = timedelta(minutes=30)  # for a step of the slowest machine; a peer that dies is noticed immediately
GATHERING = timedelta(minutes=5)  # until all processes have connected at a start
SILENCE = (10, 5, 3)  # TCP keep-alive: seconds of silence before probing, seconds between probes, number of probes
STEP, UPDATE, EVALUATE, STOP, AGAIN = 1, 2, 3, 4, 5
NAME_BYTES = 64


class LostOthersError(RescoldoError):
    """The connection to another machine was lost: unfinished work is lost, and is repeated with the remaining
    machines."""


@dataclass(frozen=True)
class Group:
    """This process's position among those of the run.

    Attributes:
        rank, size: from torchrun; they may change with every restart.
        leader: the rank that holds the output directory and writes.
        names: of the machines, by rank.
        shares: set by the user, by rank; () if speeds are measured.
    """

    rank: int
    size: int
    leader: int = 0
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def leads(self) -> bool:
        """Whether this is the leader."""
        return self.rank == self.leader

    def name(self, rank: int) -> str:
        """A machine's name in messages."""
        return self.names[rank] if self.names else f"rank {rank}"


@dataclass(frozen=True)
class Command:
    """A command to the followers.

    Attributes:
        op: STEP (compute its gradients), UPDATE (update the weights with them), EVALUATE, STOP (the run is over) or
            AGAIN (it continues with other machines).
        step: the optimizer step's number, for dropout: from 0; of an update: from 1.
        rate: the learning rate of an update.
        examples: indices in the training or validation data, in the step's order.
        ranks: the rank that computes each of them.
        tensors: the number of values that follow: the adapter's weights, or these and the optimizer's state; 0: none.
    """

    op: int
    step: int = 0
    rate: float = 0.0
    examples: Sequence[int] = ()
    ranks: Sequence[int] = ()
    tensors: int = 0


def current_group() -> Group | None:
    """The group that torchrun has put this process into; None for a process without torchrun.

    Raises:
        RescoldoError: its environment is invalid.
    """
    size, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    if not (size.isdecimal() and rank.isdecimal() and int(rank) < int(size)):
        raise RescoldoError(f"invalid RANK={rank}, WORLD_SIZE={size}", fix="start with torchrun")
    place = current_folder()
    if int(size) > 1:
        return Group(int(rank), int(size))
    if place is not None and not place.job().get("leads"):
        raise LostOthersError("the machine that leads is missing")
    return None


@contextmanager
def joined(group: Group) -> Iterator[Group]:
    """Connects the processes inside the block; yields the group with what they have told each other.

    Raises:
        RescoldoError: they cannot connect, or the connection was lost.
    """
    try:
        address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "0"))
        store = TCPStore(address, port, group.size, group.rank == 0, GATHERING)
        dist.init_process_group("gloo", store=store, rank=group.rank, world_size=group.size, timeout=PATIENCE)
        _notice_silence()
        yield introduced(group)
    except (dist.DistError, RuntimeError) as error:
        text = str(error).splitlines()[0][:200]
        lost = isinstance(error, dist.DistError) or any(w in text for w in ("onnection", "gloo", "Gloo", "timed out"))
        if not lost:
            raise
        raise LostOthersError(
            f"this machine (rank {group.rank}) lost the others: {_plainly(text)}",
            fix=f"the same command resumes from the last checkpoint; `{program()} train --nodes` does so by itself",
            exit_code=EXIT_FAILURE,
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _plainly(text: str) -> str:
    """gloo's message without its source position and guesses."""
    return re.sub(r"^\[[^\]]*\]\s*", "", text).split(". This is")[0]


def introduced(group: Group) -> Group:
    """Exchange introductions: each process's name, whether it leads, its share if the user has set one.

    Raises:
        RescoldoError: none of them leads.
    """
    place = current_folder()
    job = place.job() if place else {}
    leads = (2.0 if job.get("leads") else 0.0) if place else 1.0 if group.rank == 0 else 0.5
    share = float(job.get("share") or 0.0)
    name = platform.node().encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
    own = torch.tensor([leads, share, *name], dtype=torch.float64)
    everyone = [torch.zeros_like(own) for _ in range(group.size)]
    dist.all_gather(everyone, own)
    facts = torch.stack(everyone)
    if not bool(facts[:, 0].any()):
        raise LostOthersError("the machine that leads is missing")
    names = [bytes(int(c) for c in row).rstrip(b"\0").decode(errors="replace") for row in facts[:, 2:].tolist()]
    doubled = [f"{name} ({rank})" if names.count(name) > 1 else name for rank, name in enumerate(names)]
    shares = facts[:, 1].tolist()
    by_hand = tuple(share or 1.0 for share in shares) if any(shares) else ()
    return replace(group, leader=int(facts[:, 0].argmax()), names=tuple(doubled), shares=by_hand)


def _notice_silence() -> None:
    """Enable TCP keep-alive on the connections, because a machine without power, or behind a cut cable, closes none."""
    idle, interval, count = SILENCE
    options = {
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": count,
        "TCP_USER_TIMEOUT": 1000 * (idle + interval * count),
    }
    for fd in range(3, 1024):
        with contextlib.suppress(OSError):
            with socket.socket(fileno=os.dup(fd)) as one:  # gloo opens them and has no such setting
                if one.type != socket.SOCK_STREAM or one.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in options.items():
                    if hasattr(socket, name):
                        one.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send(command: Command, tensors: Mapping[str, torch.Tensor], root: int) -> None:
    """Leader (of rank `root`): send a command to all followers, with `tensors`."""
    count = sum(tensor.numel() for tensor in tensors.values())
    header = [command.op, command.step, command.rate, len(command.examples), count]
    dist.broadcast(torch.tensor(header, dtype=torch.float64), root)
    if command.examples:
        dist.broadcast(torch.tensor([list(command.examples), list(command.ranks)]), root)
    if count:
        dist.broadcast(flat(tensors), root)


def receive(weights: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor], root: int) -> Command:
    """Follower: receive the next command; tensors that come with it are copied into `weights`, and into the optimizer's
    state if there are more of them."""
    header = torch.zeros(5, dtype=torch.float64)
    dist.broadcast(header, root)
    op, step, rate, n_examples, count = header.tolist()
    body = torch.zeros((2, int(n_examples)), dtype=torch.int64)
    if n_examples:
        dist.broadcast(body, root)
    if count:
        vector = torch.zeros(int(count))
        dist.broadcast(vector, root)
        alone = count == sum(tensor.numel() for tensor in weights.values())
        unflatten(vector, weights if alone else {**weights, **optimizer})
    examples, ranks = body.tolist()
    return Command(int(op), int(step), rate, examples, ranks, int(count))


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All tensors in one float32 vector, in the order of their names."""
    return torch.cat([tensors[name].detach().reshape(-1).float() for name in sorted(tensors)])


def unflatten(vector: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy the parts of `vector` into the tensors."""
    start = 0
    with torch.no_grad():
        for name in sorted(tensors):
            count = tensors[name].numel()
            tensors[name].copy_(vector[start : start + count].view_as(tensors[name]))
            start += count


def leaders_date(day: date, group: Group) -> date:
    """The leader's `day` on all machines, because its output directory records when the run began."""
    number = torch.tensor([day.toordinal()])
    dist.broadcast(number, group.leader)
    return date.fromordinal(int(number))


def agree(identity: Mapping[str, Any], group: Group) -> None:
    """Check that all processes have the same config, datasets, role and base model.

    Raises:
        RescoldoError: on each of them, with the differences.
    """
    facts = {name: value for name, value in identity.items() if name not in ("surroundings", "threads")}
    facts["version of rescoldo"] = (identity.get("surroundings") or {}).get("rescoldo")
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
        odd = [
            name
            for name, a, b in zip(["fields", *names], everyone[group.leader], other, strict=True)
            if not torch.equal(a, b)
        ]
        if odd:
            raise RescoldoError(
                f"{group.name(rank)} has another {', '.join(odd)} than {group.name(group.leader)}, which leads",
                fix="the same command, datasets, role and base model on all machines; say --quantization, not auto",
            )


def _digest(value: Any) -> torch.Tensor:
    text = json.dumps(value, sort_keys=True, default=str)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
