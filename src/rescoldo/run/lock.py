"""One process per output directory: a lock file that the kernel unlocks when its holder dies, for whatever reason."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rescoldo.errors import EXIT_BUSY, RescoldoError
from rescoldo.files import quote
from rescoldo.invocation import program

LOCK_FILE = "run.lock"
HOLDER = "RESCOLDO_HOLDER"  # environment: "PID START" of a process that holds the output for this one
DYING_SECONDS = 5.0  # for a killed process to release its lock


def process_start(pid: int) -> str | None:
    """Identifies a process, so that a later one with the same pid is distinguished; None if there is no such process.

    On Linux the boot id and the start time in clock ticks (independent of the clock setting), elsewhere the creation
    time.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        fields = _proc_stat(pid)
        if fields[0] in "ZX":  # a zombie holds no lock
            return None
        return f"{boot}:{fields[19]}"
    except (OSError, IndexError):
        pass
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


def _proc_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat on Linux, from the state on."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by Ctrl-Z or SIGSTOP, as far as the system reports it."""
    try:
        return _proc_stat(pid)[0] == "T"
    except (OSError, IndexError):
        pass
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def representative() -> tuple[int, str]:
    """(pid, start) of the process that holds the output for this one, or of this process itself."""
    pid, _, start = os.environ.get(HOLDER, "").partition(" ")
    if pid.isdecimal() and start:
        return int(pid), start
    return os.getpid(), process_start(os.getpid()) or ""


@dataclass(frozen=True)
class Holder:
    """The last writer of the lock file. `alive` is None if it ran on another host, where this cannot be checked."""

    pid: int
    start: str
    host: str
    since: str
    alive: bool | None


def read_holder(output: Path) -> Holder | None:
    """The holder named in the lock file of `output`; None if nobody holds it or the file is unusable."""
    try:
        raw: Any = json.loads((output / LOCK_FILE).read_bytes()[:10_000])
        pid, start, host, since = int(raw["pid"]), str(raw["start"]), str(raw["host"]), str(raw["since"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if pid <= 0:
        return None
    alive = process_start(pid) == start if host == platform.node() else None
    return Holder(pid, start, host, since, alive)


class RunLock:
    """Context manager: holds `output` (created if missing) until the block ends or the process does. If another process
    holds it for this one (HOLDER), it does nothing.

    Raises:
        RescoldoError: another process holds it (exit code 3, with its pid), or the directory cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / LOCK_FILE
        self._fd = -1
        self._patient_until = 0.0

    def __enter__(self) -> RunLock:
        holder = read_holder(self.path.parent)
        if holder is not None and holder.pid != os.getpid() and (holder.pid, holder.start) == representative():
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._patient_until = time.monotonic() + DYING_SECONDS
            while not self._take():
                pass
        except OSError as error:
            raise RescoldoError(
                f"{self.path.parent} cannot be written: {error.strerror}",
                where="--output",
                fix="pass another --output, or make this one writable",
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Remove the lock file and unlock it. Does nothing the second time."""
        if self._fd >= 0:
            if self._is_current():
                with contextlib.suppress(OSError):
                    self.path.unlink()
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> bool:
        """Try once; False if the last holder removed the file in the meantime."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        busy = False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = True
        except OSError:  # a file system without locks: rely on the file's content
            holder = read_holder(self.path.parent)
            busy = holder is not None and holder.alive is not False
        if busy:
            self._close()
            holder = read_holder(self.path.parent)
            if holder is not None and holder.alive is False and time.monotonic() < self._patient_until:
                time.sleep(0.05)  # it was killed just now: its threads still have the file open for a moment
                return False
            raise self._refusal()
        if not self._is_current():
            self._close()
            return False
        text = json.dumps(
            {
                "pid": os.getpid(),
                "start": process_start(os.getpid()),
                "host": platform.node(),
                "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
        )
        with contextlib.suppress(OSError):  # on a full disk the lock works without content
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)
        return True

    def _is_current(self) -> bool:
        """Whether the opened file is still the one at this path."""
        try:
            ours, there = os.fstat(self._fd), os.stat(self.path)
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _refusal(self) -> RescoldoError:
        holder = read_holder(self.path.parent)
        who = f"process {holder.pid} on {holder.host}, since {holder.since}" if holder else "another process"
        fix = "wait for it"
        if holder:
            there = "" if holder.host == platform.node() else f" on {holder.host}"
            fix += f", or stop it{there} with: {program()} stop {quote(self.path.parent)} (it saves first)"
        return RescoldoError(
            f"{who} is already using {self.path.parent}", where="--output", fix=fix, exit_code=EXIT_BUSY
        )
