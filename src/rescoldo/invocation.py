"""How this program was started, so that hints show a command that the user can type."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "rescoldo"


def program() -> str:
    """This program's command, quoted for a shell, as it can be typed in the current directory.

    If the program was started as a console script (`rescoldo`, `.venv/bin/rescoldo`) or by `python -m rescoldo`, it is
    what the user typed. In a script, a background process or another program's process, it is the console script of
    this Python, or `PYTHON -m rescoldo` if there is none.
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
    """The console script `script`; its bare name if the shell finds it by that."""
    found = shutil.which(NAME)
    if found is not None and os.path.realpath(found) == os.path.realpath(shutil.which(script) or script):
        return NAME
    return shlex.quote(near(script))


def near(path: str | Path) -> str:
    """A path relative to the current directory if it is inside it, else unchanged."""
    path = str(path)
    try:
        here = os.getcwd()
    except OSError:  # the directory has been deleted
        return path
    return os.path.relpath(path, here) if os.path.isabs(path) and path.startswith(here.rstrip("/") + "/") else path
