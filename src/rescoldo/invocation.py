"""How this program was started, so that hints name a command that the user can type."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "rescoldo"


def program() -> str:
    """The command of this program, quoted for a shell, as the user can type it in the current directory.

    It is what the user typed for the console script (`rescoldo`, `.venv/bin/rescoldo`) and for `python -m rescoldo`.
    In a script, a background process or another program's process, it is the console script of this Python, and
    `PYTHON -m rescoldo` where there is none.
    """
    started = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    if started.name == NAME:
        return _typed(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == NAME:
        python = sys.orig_argv[0] if sys.orig_argv else ""
        if python and not os.path.isabs(python):
            return f"{shlex.quote(python)} -m {NAME}"
    script = Path(sys.executable).with_name(NAME)
    if script.is_file():
        return _typed(str(script))
    return f"{shlex.quote(near(sys.executable or 'python3'))} -m {NAME}"


def _typed(script: str) -> str:
    """The console script `script`: its bare name where the shell finds it by that."""
    found = shutil.which(NAME)
    if found is not None and os.path.realpath(found) == os.path.realpath(shutil.which(script) or script):
        return NAME
    return shlex.quote(near(script))


def near(path: str | Path) -> str:
    """A path relative to the current directory where it is below it, else as it is."""
    path = str(path)
    try:
        here = os.getcwd()
    except OSError:  # the directory has been deleted
        return path
    return os.path.relpath(path, here) if os.path.isabs(path) and path.startswith(here.rstrip("/") + "/") else path
