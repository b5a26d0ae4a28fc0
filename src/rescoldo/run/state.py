"""state.json: a run's current state, for `status` and `watch`. Written often, read by anyone, not needed to resume."""

from __future__ import annotations

import contextlib
import json
import platform
import threading
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rescoldo.files import read_json, write_text
from rescoldo.run.layout import STATE_FILE
from rescoldo.run.lock import representative
from rescoldo.system.cgroup import oom_kills

WRITE_SECONDS = 1.0  # minimum interval between writes
MAX_TROUBLES = 20
MAX_NUMBER = 1e15  # larger values cannot be seconds, bytes or steps of a run


@dataclass
class State:
    """The state of a run.

    Attributes:
        pid, start, host: the process, or the one that holds the output for it; `start` distinguishes it from a later
            process with the same pid.
        phase: loading, training, evaluating, saving; or, at the end, finished, stopped (saved by a signal), failed.
        began: when this process began (seconds since 1970).
        updated: when this was written.
        epoch: from 1.
        share: the finished fraction of the whole run, 0..1.
        loss: of the last optimizer step.
        val_loss: of the last evaluated epoch.
        val_loss_before: before training.
        tokens_per_second: of training, over the last units of work; 0 before the first.
        seconds_left: estimated from the speed of training, of evaluating or of a plan; None if none is known.
        memory_bytes, peak_memory_bytes: the process's own memory, without mapped files.
        free_bytes: the memory that it could still use.
        keep_layers: maximum number of layers that keep activations; None without a limit.
        oom_kills: the kernel's count of OOM kills when this was written.
        suspended_seconds, stopped_seconds: the machine slept, the process was stopped.
        last_checkpoint: its name.
        checkpoint_error: why the last one could not be written; "" if it could.
        error: why the run failed.
        signal: the signal that stopped it, otherwise 0.
        troubles: problems reported during the run, each {"time", "what", "remedy"}.
    """

    pid: int = 0
    start: str = ""
    host: str = ""
    phase: str = "loading"
    began: float = 0.0
    updated: float = 0.0
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    share: float = 0.0
    loss: float | None = None
    val_loss: float | None = None
    val_loss_before: float | None = None
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    memory_bytes: int = 0
    peak_memory_bytes: int = 0
    free_bytes: int = 0
    keep_layers: int | None = None
    oom_kills: int = 0
    suspended_seconds: float = 0.0
    stopped_seconds: float = 0.0
    last_checkpoint: str = ""
    checkpoint_error: str = ""
    error: str = ""
    signal: int = 0
    troubles: list[dict[str, Any]] = field(default_factory=list)

    @property
    def broken_off(self) -> bool:
        """Whether the process itself has recorded that it ended before the run was finished."""
        return self.phase in ("stopped", "failed")


def read_state(output: Path) -> State | None:
    """The state that the last process left in `output`; None if there is none or it is unusable."""
    raw = read_json(output / STATE_FILE)
    if raw is None:
        return None
    state, empty = State(), State()
    for name in (one.name for one in fields(State)):
        value, default = raw.get(name), getattr(empty, name)
        whole = type(default) is int
        number = default is None or type(default) in (int, float)
        fits = _is_number(value, whole=whole) if number else type(value) is type(default)
        if fits:
            setattr(state, name, value)
    state.troubles = [trouble for trouble in state.troubles if _is_trouble(trouble)]
    return state if state.pid > 0 and state.start else None


def _is_number(value: Any, *, whole: bool = False) -> bool:
    return type(value) in ((int,) if whole else (int, float)) and abs(value) <= MAX_NUMBER


def _is_trouble(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_number(value.get("time")):
        return False
    return isinstance(value.get("what"), str) and isinstance(value.get("remedy"), str)


class StateFile:
    """The current process's state and its file. Threads may share an instance. A full disk does not stop it."""

    def __init__(self, output: Path) -> None:
        self.path = output / STATE_FILE
        pid, start = representative()
        self.state = State(pid=pid, start=start, host=platform.node(), began=time.time())
        self._lock = threading.Lock()
        self._written = float("-inf")

    def update(self, *, now: bool = False, **values: Any) -> None:
        """Set fields; write if the last write was long enough ago, or `now`."""
        with self._lock:
            for name, value in values.items():
                setattr(self.state, name, value)
            if now or time.monotonic() - self._written >= WRITE_SECONDS:
                self._write()

    def trouble(self, what: str, remedy: str) -> None:
        """Record a problem that a person should know about."""
        with self._lock:
            note = {"time": time.time(), "what": what, "remedy": remedy}
            self.state.troubles = [*self.state.troubles, note][-MAX_TROUBLES:]
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self.state.updated, self.state.oom_kills = time.time(), oom_kills()
        if not self.path.parent.is_dir():  # deleted while we run: do not recreate it for this
            return
        with contextlib.suppress(OSError):  # no fsync: after a power cut the state is obsolete anyway
            write_text(self.path, json.dumps(asdict(self.state)), durable=False)
