"""Keeping the machine from going to sleep during a run, if the system supports it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

POWER_STATES = Path("/sys/power/state")  # Linux: supported states; empty in most containers and virtual machines
ANSWER_SECONDS = 0.4  # an inhibitor that does not work exits within this time


def can_suspend() -> bool:
    """Whether the system can suspend this machine; True if it does not say."""
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
    """A running inhibitor; None if none works (a container, no login manager)."""
    command = inhibitor()
    if not command:
        return None
    try:  # in its own session, so that Ctrl-C does not reach it; its input is a pipe that closes when we die
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
    """Stop the inhibitor, so that the machine may sleep again."""
    if process is None:
        return
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
        process.terminate()
    process.wait()


@contextlib.contextmanager
def awake() -> Iterator[bool]:
    """Prevents sleep inside the block; yields whether that works."""
    process = start_inhibitor()
    try:
        yield process is not None
    finally:
        stop_inhibitor(process)
