"""The cause of a process's end: from its files, from what its keeper saw, and from the kernel's log."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.run.state import State
from rescoldo.system.cgroup import oom_kills

KMSG_BYTES = 8192


def boot_of(start: str) -> str:
    """The boot id in a value of `process_start`; "" on systems without one."""
    boot, colon, _ = start.partition(":")
    return boot if colon else ""


def current_boot() -> str:
    """The current boot id; "" on systems without one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Cause:
    """Why a process ended, as text, and whether the kernel killed it for memory."""

    text: str
    memory: bool = False


_OUT_OF_MEMORY = Cause("killed for memory by the kernel", memory=True)


def cause_of_death(pid: int, start: str, state: State | None, ended: dict[str, Any] | None) -> Cause:
    """Why the process (pid, start) ended without reporting its end.

    Args:
        pid, start: as in the lock file or state.
        state: the state it left, if it is this process's.
        ended: the content of exit.json, if it is about this process.
    """
    if boot_of(start) and boot_of(start) != current_boot():
        return Cause("the machine was restarted or lost power while it ran")
    if ended is not None:
        number = ended["signal"] if isinstance(ended.get("signal"), int) else 0
        if number == signal.SIGKILL:
            by_kernel = bool(ended.get("oom_kill")) or kernel_named(pid)
            return _OUT_OF_MEMORY if by_kernel else Cause("killed (SIGKILL: kill -9 or a supervisor)")
        if number:
            return Cause(f"ended by {signal_name(number)}{_CRASHES.get(number, '')}")
        return Cause(f"ended with exit code {ended.get('returncode')}")
    if kernel_named(pid) or (state is not None and oom_kills() > state.oom_kills):
        return _OUT_OF_MEMORY
    return Cause("killed (SIGKILL, or a crash): it could not report why")


_CRASHES = {
    int(signal.SIGSEGV): ", a crash in native code",
    int(signal.SIGBUS): ", a mapped file was truncated, or the disk failed",
    int(signal.SIGILL): ", an instruction that this CPU does not have",
    int(signal.SIGABRT): ", a native library aborted",
}


def signal_name(number: int) -> str:
    """15 → SIGTERM."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def kernel_named(pid: int) -> bool:
    """Whether the kernel's log, if it is readable, says that it killed this process for memory."""
    wanted = f"Killed process {pid} ".encode()
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        while True:
            try:
                if wanted in os.read(fd, KMSG_BYTES):
                    return True
            except BlockingIOError:
                return False
            except BrokenPipeError:  # the line was overwritten in the meantime
                continue
            except OSError:
                return False
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
