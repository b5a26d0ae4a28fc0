"""What a benchmark needs beyond rescoldo itself, checked before it measures or writes anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# modules that rescoldo does not bring along, and the packages that they come from
PACKAGES = {
    "matplotlib": "matplotlib",
    "mistral_common": "mistral-common",
    "peft": "peft",
    "xllamacpp": "xllamacpp",
}


def require(*modules: str) -> None:
    """Stop where one of these `modules`, keys of PACKAGES, is not installed.

    Raises:
        SystemExit: with what is missing and the command that installs it.
    """
    missing = [PACKAGES[name] for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        command = f"{sys.executable} -m pip install -c requirements/dev.txt {' '.join(missing)}"
        raise SystemExit(
            f"error: this benchmark needs packages that are not installed: {', '.join(missing)}\n{command}"
        )


def writable(output: Path) -> None:
    """Make the folder of the file `output`, and stop where it cannot be written.

    Raises:
        SystemExit: with the reason.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a", encoding="utf-8"):
            pass
        if not output.stat().st_size:
            output.unlink()
    except OSError as error:
        raise SystemExit(f"error: {output} cannot be written: {error.strerror}") from error
