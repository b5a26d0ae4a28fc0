"""The launcher of `rescoldo train --nodes` on each machine: it runs torchrun and outlives its restarts.

The machine at the rendezvous address leads: it has the output directory, its lock, and the rendezvous itself. So it
must not be lost; if it is, the others wait for it for a while and then stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.nodes.address import answers, interface_of, local_address
from rescoldo.nodes.nodes import Nodes
from rescoldo.nodes.place import VARIABLE, WorkerFolder
from rescoldo.run.layout import LOG_FILE
from rescoldo.run.lock import HOLDER, RunLock, process_start
from rescoldo.run.signals import Interruption
from rescoldo.training.config import RunConfig
from rescoldo.training.identity import move_aside

POLL = 0.2
PARTING_SECONDS = 20.0  # for torchrun to notice that its worker has ended
LEADER_SECONDS = 600.0  # how long a machine waits for the leader
STARTING_SECONDS = 20.0  # until the first process on a machine is reachable for the others on it
_libc = ctypes.CDLL(None)


class Launcher:
    """One machine's part in a run."""

    def __init__(self, config: RunConfig, nodes: Nodes, *, adapter_bin: bool, force: bool, quiet: bool) -> None:
        self.config, self.nodes, self.quiet = config, nodes, quiet
        self.switches = {"adapter_bin": adapter_bin, "force": force}

    def run(self, *, restart: bool) -> dict[str, Any]:
        """Take part until the run is over. Returns the worker's outcome: {"code", "summary"?, "error"?}.

        Raises:
            RescoldoError: another process holds the output, the leader cannot be reached, or torchrun fails.
        """
        folder = Path(tempfile.mkdtemp(prefix="rescoldo-nodes-"))
        try:
            with self._role(restart) as leads, Interruption() as interruption:
                return self._take_part(WorkerFolder(folder), leads, interruption)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _role(self, restart: bool) -> Iterator[bool]:
        """Yields whether this process leads; in that case it holds the output directory meanwhile."""
        nodes, output = self.nodes, self.config.output
        if not nodes.here:
            yield False
            return
        made = not output.exists()
        lock = RunLock(output)
        try:
            lock.__enter__()
        except RescoldoError:  # the holder may be the first process of this run on this machine
            until = time.monotonic() + STARTING_SECONDS
            while not answers(nodes.host, nodes.port):
                if time.monotonic() > until:
                    raise
                time.sleep(POLL)
            self.say(f"another process on this machine leads the run in {output}: this one joins it")
            yield False
            return
        try:
            if restart and any(path.name not in (lock.path.name, LOG_FILE) for path in output.iterdir()):
                aside = move_aside(output)
                lock.path = aside / lock.path.name
                lock.release()
                lock = RunLock(output)
                lock.__enter__()
                self.say(f"the old run is now {aside}")
            yield True
        finally:
            lock.release()
            if made:
                with contextlib.suppress(OSError):  # a refused run leaves no folder behind
                    output.rmdir()

    def _take_part(self, place: WorkerFolder, leads: bool, interruption: Interruption) -> dict[str, Any]:
        launcher = {"pid": os.getpid(), "start": process_start(os.getpid())}
        config = self.config.model_dump(mode="json", exclude_unset=True)
        place.write_job(config=config, leads=leads, share=self.nodes.share, launcher=launcher, **self.switches)
        while True:
            if not leads and not self._leader_answers(interruption):
                return {"code": 128 + (interruption.received or 0)}
            outcome = self._torchrun(place, leads, interruption)
            if outcome is not None:
                return outcome
            if leads:
                raise RescoldoError(
                    f"torchrun gave up: {_last_line(place.folder / 'agent.log')}",
                    where=str(self.config.output),
                    fix="the same command on all machines resumes from the last checkpoint",
                    exit_code=EXIT_FAILURE,
                )

    def _leader_answers(self, interruption: Interruption) -> bool:
        """Wait for the leader; False if a signal comes first."""
        nodes, until, said = self.nodes, time.monotonic() + LEADER_SECONDS, False
        while not answers(nodes.host, nodes.port):
            if interruption.received:
                return False
            if not said:
                self.say(
                    f"{nodes.endpoint} does not answer yet: waiting for the machine that leads (the same command there)"
                )
                said = True
            if time.monotonic() > until:
                raise RescoldoError(
                    f"{nodes.endpoint}, the machine that leads, has not answered for {LEADER_SECONDS / 60:.0f} minutes",
                    where="--rendezvous",
                    fix="give the same command there, then here: the run resumes from its last checkpoint; "
                    "a firewall between the machines must allow their connections",
                    exit_code=EXIT_FAILURE,
                )
            time.sleep(1.0)
        return not interruption.received

    def _torchrun(self, place: WorkerFolder, leads: bool, interruption: Interruption) -> dict[str, Any] | None:
        """Run torchrun to its end; None if it ended without a report from the worker."""
        nodes, address = self.nodes, local_address(self.nodes.host)
        environment = {
            **os.environ,
            VARIABLE: str(place.folder),
            **({HOLDER: f"{os.getpid()} {process_start(os.getpid())}"} if leads else {}),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a new store at every start, without counts of an earlier one
            "GLOO_SOCKET_IFNAME": interface_of(address),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        with open(place.folder / "agent.log", "ab") as log:
            agent = subprocess.Popen(
                nodes.torchrun(address, leads),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if self.quiet else None,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches only this process, which saves first
                preexec_fn=_die_with_parent,  # noqa: PLW1509 — this process has one thread
            )
        told, ended = False, 0.0
        try:
            while agent.poll() is None:
                time.sleep(POLL)
                outcome = place.outcome()
                if outcome is not None:
                    ended = ended or time.monotonic()
                    if outcome["code"] or time.monotonic() - ended > PARTING_SECONDS:
                        return outcome
                elif interruption.received and not told:
                    told = True
                    if not self._tell(place, interruption.received):
                        return {"code": 128 + interruption.received}
                elif told and place.worker() is None:
                    return place.outcome() or {"code": 128 + int(interruption.received or 0)}
            return place.outcome()
        finally:
            _end(agent, place)

    def _tell(self, place: WorkerFolder, number: signal.Signals) -> bool:
        """Pass the user's signal on to the worker; False if there is none."""
        place.ask_to_stop()
        worker = place.worker()
        if worker is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, number)
        return True

    def say(self, text: str) -> None:
        """One line for the user."""
        print(text, file=sys.stderr if self.quiet else sys.stdout, flush=True)


def _die_with_parent() -> None:
    """In the child: die with the launcher, for whatever reason (Linux; elsewhere the worker takes care of it)."""
    with contextlib.suppress(AttributeError, OSError):
        _libc.prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def _end(agent: subprocess.Popen[bytes], place: WorkerFolder) -> None:
    """End torchrun and the worker, which has its own process group."""
    worker = place.worker()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()
    worker = place.worker() or worker
    if worker is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        while process_start(worker) is not None and place.worker() is not None:
            time.sleep(0.02)


def _last_line(path: Path) -> str:
    """The last line of torchrun's log that describes a problem."""
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if "Error" in line]
        if lines:
            return lines[-1][:300]
    return "it gave no reason"
