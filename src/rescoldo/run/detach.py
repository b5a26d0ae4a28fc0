"""Detached runs: a run in its own session survives the terminal that it was started from, and writes to a log file."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import quote, read_json
from rescoldo.run.layout import EXIT_FILE, LOG_FILE
from rescoldo.run.lock import RunLock, read_holder
from rescoldo.run.status import error_of, read_status

POLL = 0.05
SETTLE_SECONDS = 15.0  # how long the starting command waits for the run to check its settings


def train_command(given: Mapping[str, Any], config: Path | None, **switches: bool) -> list[str]:
    """The equivalent `rescoldo train` command line for the foreground.

    Args:
        given: field → value, from the flags; None for flags that were not given.
        config: the value of --config.
        switches: flags without a value, by name; those that are true are set.
    """
    command = [sys.executable, "-u", "-m", "rescoldo", "train"]
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            command += [f"--{flag}={value}"]
    if config is not None:
        command.append(f"--config={config}")
    return command + [f"--{name.replace('_', '-')}" for name, value in switches.items() if value]


def start_detached(output: Path, command: list[str], on_exit: str) -> int:
    """Start `command` in its own session under a keeper, with its output going to OUTPUT/run.log.

    Returns:
        The run's pid, once it holds the output directory and has checked its settings, or is still doing so after a few
        seconds.

    Raises:
        RescoldoError: another process uses the output (exit code 3), or the run ended at once; with its own message.
    """
    with RunLock(output):  # refuses now, on the terminal, instead of later in the log
        pass
    path = output / LOG_FILE
    began, since = time.monotonic(), time.time()
    with open(path, "ab", buffering=0) as log:
        at = log.tell()
        try:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S%z')} {shlex.join(command[3:])}\n".encode())
        except OSError as error:
            what, fix = f"cannot be written: {error.strerror}", f"df -h {quote(output)}; free some room"
            raise RescoldoError(what, where=str(path), fix=fix, exit_code=EXIT_FAILURE) from None
        keeper = subprocess.Popen(
            [sys.executable, "-u", "-m", "rescoldo.cli.keeper", str(output), on_exit, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
    pid = 0
    while time.monotonic() - began < SETTLE_SECONDS or not pid:
        holder = read_holder(output)
        if holder is not None and holder.alive:
            pid = holder.pid
            if read_status(output).kind.reports:
                return pid
        code = keeper.poll()
        if code is not None:
            if code == 0:
                return pid or keeper.pid  # it was already finished, or is now
            raise _refused(output, path, at, code, since)
        time.sleep(POLL)
    return pid


def _refused(output: Path, log: Path, at: int, code: int, since: float) -> RescoldoError:
    ended = read_json(output / EXIT_FILE) or {}
    at_all = isinstance(ended.get("time"), int | float) and ended["time"] >= since  # otherwise from an earlier run
    what = error_of(ended) if at_all else ""
    if not what:
        with contextlib.suppress(OSError), open(log, "rb") as file:
            file.seek(at)
            what = file.read(4000).decode(errors="replace").strip()
    code = code if 0 < code < 128 else EXIT_FAILURE
    return RescoldoError(f"the run ended at once:\n{what}", where=str(output), exit_code=code)


def follow_move(old: Path, new: Path) -> None:
    """After `old` was renamed to `new` and recreated: if stdout or stderr is the log that was moved, continue in a new
    log in `old`."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError):
            if not os.path.samestat(os.fstat(number), os.stat(new / LOG_FILE)):
                continue
            stream.flush()
            fd = os.open(old / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(fd, number)
            os.close(fd)
