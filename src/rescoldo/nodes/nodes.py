"""The values of `--nodes` and related options, and the torchrun command for them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from rescoldo.errors import RescoldoError
from rescoldo.nodes.address import is_here

PORT = 29400  # torchrun's default
JOIN_SECONDS = 30  # time for more machines to join, once there are enough
MAX_RESTARTS = 100
WAIT_SECONDS = 24 * 3600  # timeout until there are enough machines
KEEP_ALIVE = (2, 3)  # (seconds, times): a machine that misses so many heartbeats is considered lost


@dataclass(frozen=True)
class Nodes:
    """The number of machines, and their rendezvous.

    Attributes:
        least: the run waits until there are this many machines.
        most: further machines are refused.
        host, port: of the machine that leads.
        here: whether this machine leads.
        share: this machine's speed relative to machines with share 1; None: measured.
    """

    least: int
    most: int
    host: str
    port: int
    here: bool
    share: float | None = None
    join_seconds: int = JOIN_SECONDS
    max_restarts: int = MAX_RESTARTS

    @property
    def endpoint(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    def torchrun(self, address: str, leads: bool) -> list[str]:
        """The torchrun command for the machine with this address."""
        interval, attempts = KEEP_ALIVE
        settings = {
            "is_host": str(leads).lower(),
            "join_timeout": WAIT_SECONDS,
            "last_call_timeout": self.join_seconds,
            "keep_alive_interval": interval,
            "keep_alive_max_attempt": attempts,
        }
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nnodes={self.least}:{self.most}",
            "--nproc-per-node=1",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.endpoint}",
            "--rdzv-id=rescoldo",
            f"--rdzv-conf={','.join(f'{name}={value}' for name, value in settings.items())}",
            f"--local-addr={address}",
            f"--max-restarts={self.max_restarts}",
            "-m",
            "rescoldo.cli.worker",
        ]


def count(text: str) -> tuple[int, int]:
    """Parse a number of machines: `4` → (1, 4): up to four, continuing with those that are left; `2:4` → (2, 4).

    Raises:
        RescoldoError: it has another form.
    """
    match = re.fullmatch(r"(?:(\d{1,4}):)?(\d{1,4})", text.strip())
    least, most = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    if not 1 <= least <= most:
        raise RescoldoError(
            f"{text!r} is not a number of machines",
            where="--nodes",
            fix="4: up to four, continuing with those that are left; 2:4: as long as there are two",
        )
    return least, most


def nodes_of(
    nodes: str,
    rendezvous: str,
    *,
    share: float | None = None,
    join_seconds: int = JOIN_SECONDS,
    max_restarts: int = MAX_RESTARTS,
) -> Nodes:
    """The nodes that the user's options describe.

    Raises:
        RescoldoError: a number or an address is invalid.
    """
    least, most = count(nodes)
    host, _, port = rendezvous.rpartition(":") if re.search(r":\d+$", rendezvous) else (rendezvous, "", str(PORT))
    host = host.strip("[]")
    if not host or host in ("0.0.0.0", "::") or not 1 <= int(port) <= 65535:
        raise RescoldoError(
            f"{rendezvous!r} is not a machine's address",
            where="--rendezvous",
            fix=f"the machine that leads, and a port: 192.168.1.20:{PORT}",
        )
    return Nodes(least, most, host, int(port), is_here(host), share, join_seconds, max_restarts)


def instructions(command: list[str], nodes: str, address: str) -> str:
    """What to type on each machine, for a user who has given no rendezvous."""
    import shlex

    _, most = count(nodes)
    line = shlex.join([*command, f"--rendezvous={address}:{PORT}"])
    return (
        f"For one run on up to {most} machines, type this on each of them:\n\n  {line}\n\n"
        f"{address} is this machine: it leads, and has the output directory. Start here.\n"
        "The others need the same version of rescoldo, and dataset, role and base model at the same paths; this is\n"
        "checked before the start. The machines must reach each other on all ports.\n"
    )
