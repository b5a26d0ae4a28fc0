"""Keeping the machine from going to sleep while a run works, where the system has a way."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

POWER_STATES = Path("/sys/power/state")  # Linux: what the kernel can do, "" in most containers and virtual machines
ANSWER_SECONDS = 0.4  # an inhibitor that cannot work ends at once


def can_suspend() -> bool:
    """Whether the system can put this machine to sleep; True where it does not say."""
    try:
        states = POWER_STATES.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # not Linux
        return True
    return bool(set(states) - {"disk"})


def inhibitor() -> list[str]:
    """The command that prevents sleep until its standard input closes or this process ends; [] if there is none."""
    if shutil.which("systemd-inhibit"):
        what = ["--what=sleep:idle:handle-lid-switch", "--who=rescoldo", "--why=fine-tuning", "--mode=block"]
        return ["systemd-inhibit", *what, "cat"]
    if shutil.which("caffeinate"):
        return ["caffeinate", "-i", "-s", "-w", str(os.getpid())]
    return []


def start_inhibitor() -> subprocess.Popen[bytes] | None:
    """A running inhibitor, None if the system has none that works (a container, no login manager)."""
    command = inhibitor()
    if not command:
        return None
    try:  # own session: a Ctrl-C for the run is not for it. Its input is a pipe that closes when we die.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        process.wait(ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return process
    if process.stdin:
        process.stdin.close()
    return None


def stop_inhibitor(process: subprocess.Popen[bytes] | None) -> None:
    """Let the machine sleep again."""
    if process is None:
        return
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
        process.terminate()
    process.wait()


@contextlib.contextmanager
def awake() -> Iterator[bool]:
    """Hold off sleep inside the block; yields whether that worked."""
    process = start_inhibitor()
    try:
        yield process is not None
    finally:
        stop_inhibitor(process)
