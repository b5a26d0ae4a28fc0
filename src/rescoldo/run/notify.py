"""Notification of a run's end: the user's command gets the run's status as JSON on standard input."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from rescoldo.run.status import read_status


def run_on_exit(command: str, output: Path) -> str:
    """Run the user's shell command with the document of `rescoldo status --json` on its standard input.

    Returns:
        "" if it succeeded, else what went wrong, as text.
    """
    document = json.dumps(read_status(output).as_json(), ensure_ascii=False) + "\n"
    try:
        done = subprocess.run(command, shell=True, input=document.encode(errors="replace"), check=False)
    except OSError as error:
        return f"--on-exit {command!r} could not be run: {error.strerror or error}"
    return f"--on-exit {command!r} ended with exit code {done.returncode}" if done.returncode else ""
