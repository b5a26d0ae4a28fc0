"""The small parent process of a detached run: it starts the run, records how it ends, and notifies the user.

It is a separate process because a killed run cannot report its own end. It imports no torch, and the run continues if
the keeper itself is killed. `python -m rescoldo.cli.keeper OUTPUT ON_EXIT COMMAND…`
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from rescoldo.files import read_json, write_json
from rescoldo.run.exits import VARIABLE
from rescoldo.run.layout import ERROR_FILE, EXIT_FILE
from rescoldo.run.lock import process_start
from rescoldo.run.notify import run_on_exit
from rescoldo.run.status import read_status
from rescoldo.system.cgroup import oom_kills


def keep(output: Path, on_exit: str, command: list[str]) -> int:
    """Run `command` to its end, write exit.json, run the user's `on_exit` command. Returns the exit code."""
    before = oom_kills()
    error_file = output.absolute() / ERROR_FILE
    with contextlib.suppress(OSError):  # an old file that cannot be removed is recognized by its pid
        error_file.unlink()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, VARIABLE: str(error_file)})
    start = process_start(child.pid)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            child.send_signal(number)

    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, pass_on)
    code = child.wait()
    number = -code if code < 0 else 0
    error = read_json(error_file)
    document = {
        "pid": child.pid,
        "start": start,
        "returncode": code,
        "signal": number,
        "oom_kill": oom_kills() > before,
        "time": time.time(),
        "error": error if error is not None and error.get("pid") == child.pid else None,
    }
    with contextlib.suppress(OSError):
        write_json(output / EXIT_FILE, document)
        error_file.unlink()
    if read_status(output).kind.silent:
        from rescoldo.report.run_page import write_report

        write_report(output, lambda text: print(f"⚠️  {text}", flush=True))
    if on_exit:
        problem = run_on_exit(on_exit, output)
        if problem:
            print(f"⚠️  {problem}", flush=True)
    return 128 + number if number else code


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
