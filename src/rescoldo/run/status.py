"""The status of a run, read from its files. No large imports, so it takes a fraction of a second."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.files import quote, read_json
from rescoldo.invocation import program
from rescoldo.names import is_server
from rescoldo.run.death import boot_of, cause_of_death, current_boot, signal_name
from rescoldo.run.kinds import KINDS, Kind
from rescoldo.run.layout import EXIT_FILE, INFO_FILE, LOG_FILE, RUN_FILE, STATE_FILE, list_checkpoints
from rescoldo.run.lock import Holder, is_stopped, process_start, read_holder
from rescoldo.run.state import State, read_state
from rescoldo.run.sweep import SweepState, read_sweep


@dataclass(frozen=True)
class Status:
    """A run as seen from outside.

    Attributes:
        status: a key of run.kinds.KINDS: "starting", "running", "paused" (Ctrl-Z, SIGSTOP), "finished", "stopped"
            (saved after a signal), "failed" (an error), "died" (killed, crashed, machine restarted), "unknown" (it
            runs, or ran, on another host), "never" (no run here).
        why: the reason for paused, stopped, failed and died, as text.
        next: a command to type next; "" if there is nothing to do.
        killed_for_memory: whether the last process was.
        pid: of the current or last process; None if unknown.
        state: the last state that it wrote; {} if none.
        checkpoint: the newest checkpoint's name; "" without one.
        checkpoint_age: seconds since it was written.
        log: the log file of a detached run, if there is one.
        sweep: the state of a sweep, as text; "" for a single run. State, checkpoint and so on are then those of
            `trial`.
        trial: the directory of the sweep's trial, else `output`.
    """

    output: str
    status: str
    why: str = ""
    next: str = ""
    killed_for_memory: bool = False
    pid: int | None = None
    base_model: str = ""
    started: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    checkpoint_age: float | None = None
    log: str | None = None
    sweep: str = ""
    trial: str = ""

    @property
    def kind(self) -> Kind:
        """The properties of this status."""
        return KINDS[self.status]

    @property
    def alive(self) -> bool:
        """Whether a process is running, as far as can be seen."""
        return self.kind.alive

    @property
    def share(self) -> float:
        """The finished fraction of the run, 0..1."""
        return 1.0 if self.kind.finished else float(self.state.get("share") or 0.0)

    def as_json(self) -> dict[str, Any]:
        """The JSON of `--json` and `--on-exit`."""
        return asdict(self)


def read_status(output: Path) -> Status:
    """The status of a run. It never fails: a directory without a run has the status "never"."""
    sweep = None if os.path.exists(output / RUN_FILE) else read_sweep(output)
    if sweep is not None:
        return _sweep_status(output, sweep)
    run, info, state = read_json(output / RUN_FILE), read_json(output / INFO_FILE), read_state(output)
    holder, ended = read_holder(output), read_json(output / EXIT_FILE)
    config = run.get("config") if run else None
    newest = next(iter(list_checkpoints(output)), None) if run else None
    log = output / LOG_FILE
    known: dict[str, Any] = {
        "base_model": str(config.get("base_model", "")) if isinstance(config, dict) else "",
        "started": str(run.get("started", "")) if run else "",
        "state": asdict(state) if state else {},
        "checkpoint": newest.name if newest else "",
        "checkpoint_age": _age(newest) if newest else None,
        "log": str(log) if os.path.isfile(log) else None,
    }
    again = "the same train command again resumes it" if newest else "give the same train command again"
    if holder is not None and holder.alive is None:
        return Status(str(output), "unknown", _elsewhere(holder), pid=holder.pid, **known)
    if holder is not None and holder.alive:
        fresh = state is not None and (state.pid, state.start) == (holder.pid, holder.start)
        if fresh and state is not None and state.phase == "finished":  # the process is about to exit
            return Status(str(output), "finished", next=_decide(output, config), pid=holder.pid, **known)
        if is_stopped(holder.pid):
            return Status(str(output), "paused", *_paused(holder.pid), pid=holder.pid, **known)
        return Status(str(output), "running" if fresh else "starting", pid=holder.pid, **known)
    if info is not None and "identity" in info:
        return Status(str(output), "finished", next=_decide(output, config), pid=state.pid if state else None, **known)
    if state is not None and state.phase == "stopped":
        return Status(
            str(output),
            "stopped",
            f"by {signal_name(state.signal)}{', and saved' if newest else ''}",
            again,
            pid=state.pid,
            **known,
        )
    return _gone(output, known, again, state, holder, ended)


def _decide(output: Path, config: Any) -> str:
    """The command that shows whether a finished run was worth it: a comparison with its base model on its validation
    set; if the run's record does not name these, the check of its files."""
    config = config if isinstance(config, dict) else {}
    base, val = config.get("base_model"), config.get("val")
    if not isinstance(base, str) or not isinstance(val, str):
        return f"{program()} verify {quote(output)}"
    if is_server(base):
        base = f"engine:{base}"  # without the prefix, compare would contact a server
    models = f"--baseline {quote(base)} --finetuned {quote(output)}"
    return f"{program()} compare {models} --dataset {quote(val)} --output {quote(f'{output}.comparison.json')}"


def _elsewhere(holder: Holder) -> str:
    return f"process {holder.pid} works there on {holder.host}, or did; its state can only be seen on that host"


def _paused(pid: int) -> tuple[str, str]:
    """The reason, and what to do."""
    return "it was stopped by Ctrl-Z or SIGSTOP", f"fg in its terminal, or kill -CONT {pid}"


def _sweep_status(output: Path, sweep: SweepState) -> Status:
    """A sweep's status: that of its trial, whose process is the one that holds the sweep."""
    trial, holder = output / sweep.trial, read_holder(output)
    inner = read_status(trial) if sweep.trial else Status(str(output), "starting")
    log = str(output / LOG_FILE) if os.path.isfile(output / LOG_FILE) else inner.log
    shown = replace(
        inner, output=str(output), sweep=sweep.words, trial=str(trial), why="", killed_for_memory=False, log=log
    )
    again = "the same sweep command again resumes it"
    if holder is not None and holder.alive is None:
        return replace(shown, status="unknown", why=_elsewhere(holder), next="", pid=holder.pid)
    if holder is not None and holder.alive:
        if is_stopped(holder.pid):
            why, next_ = _paused(holder.pid)
            return replace(shown, status="paused", why=why, next=next_, pid=holder.pid)
        return replace(shown, status="running", next="", pid=holder.pid)
    if sweep.finished:
        return replace(shown, status="finished", next=f"{program()} verify {quote(trial)}", pid=None)
    if holder is not None:  # the lock file remains if its holder is killed
        cause = cause_of_death(holder.pid, holder.start, None, None)
        return replace(shown, status="died", why=cause.text, next=again, pid=holder.pid)
    return replace(shown, status="stopped", next=again, pid=None)


def _gone(output: Path, known: dict[str, Any], again: str, state: State | None, holder: Any, ended: Any) -> Status:
    """The status of a run whose process has ended without finishing it."""
    last: tuple[int, str] | None = None
    if holder is not None:  # the lock file remains if its holder is killed
        last = (holder.pid, holder.start)
    elif ended is not None and isinstance(ended.get("pid"), int) and not _later(state, ended):
        last = (ended["pid"], str(ended.get("start")))
    elif state is not None:
        last = (state.pid, state.start)
    if last is None:
        if known["checkpoint"] or known["started"]:
            return Status(str(output), "died", "it ended without reporting why", again, **known)
        return Status(str(output), "never", "no run has been started here", f"{program()} train --help", **known)
    own_state = state if state is not None and (state.pid, state.start) == last else None
    own_end = ended if ended is not None and (ended.get("pid"), ended.get("start")) == last else None
    if own_state is not None and own_state.phase == "failed":
        return Status(str(output), "failed", own_state.error, again, pid=last[0], **known)
    code = own_end.get("returncode") if own_end is not None and not own_end.get("signal") else None
    if isinstance(code, int) and code > 128:  # a signal during preparation, before there was a state
        return Status(str(output), "stopped", f"by {signal_name(code - 128)}", again, pid=last[0], **known)
    if code:
        why = error_of(own_end) or f"exit code {code}"
        return Status(str(output), "failed", why, f"{program()} logs {quote(output)}", pid=last[0], **known)
    if own_state is not None and own_state.host != platform.node() and not own_end:
        return Status(str(output), "unknown", f"it ran on {own_state.host}", again, pid=last[0], **known)
    cause = cause_of_death(*last, own_state, own_end)
    if cause.memory:
        again += ", with less memory for activations"
    return Status(str(output), "died", cause.text, again, cause.memory, pid=last[0], **known)


def _later(state: State | None, ended: dict[str, Any]) -> bool:
    """Whether the state is from a process after the one in `ended` (for example a run in the foreground)."""
    at = ended.get("time")
    return state is not None and isinstance(at, int | float) and state.updated > at


def error_of(ended: dict[str, Any] | None) -> str:
    """The message of the error that ended a detached run, from exit.json; "" if there is none."""
    error = ended.get("error") if ended is not None else None
    if not isinstance(error, dict):
        return ""
    what, where, fix = (part if isinstance(part := error.get(name), str) else None for name in _ERROR)
    return "" if what is None or where is None or fix is None else str(RescoldoError(what, where=where, fix=fix))


_ERROR = ("what", "where", "fix")  # the keys of RescoldoError.document


def _age(checkpoint: Path) -> float | None:
    """Seconds since a checkpoint was written; a clock set back makes it 0, not negative."""
    try:
        return max(0.0, time.time() - checkpoint.stat().st_mtime)
    except OSError:
        return None


def require_run(output: Path) -> Status:
    """read_status for commands that need a run.

    Raises:
        RescoldoError: there is none, or its files cannot be read.
    """
    for name in (RUN_FILE, INFO_FILE, STATE_FILE):
        try:
            open(output / name, "rb").close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # a status from the other files alone would be wrong
            what, fix = f"cannot be read: {error.strerror}", "use the account of the user who started the run"
            raise RescoldoError(what, where=str(output / name), fix=fix) from None
    status = read_status(output)
    if not status.kind.exists:
        what = "no run has been started here" if output.is_dir() else "there is no such directory"
        what = "is a file, not a directory" if output.is_file() else what
        raise RescoldoError(
            what, where=str(output), fix=f"pass the --output of a run; `{program()} list` shows those of this machine"
        )
    return status


def same_process(pid: int, start: str) -> bool:
    """Whether the process (pid, start) is still alive."""
    return process_start(pid) == start and (not boot_of(start) or boot_of(start) == current_boot())
