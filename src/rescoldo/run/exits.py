"""How the process of a detached run tells its keeper which error ended it: as data, in a file that the keeper names."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rescoldo.errors import RescoldoError
from rescoldo.files import write_json

VARIABLE = "RESCOLDO_ERROR_FILE"


def note_error(error: RescoldoError) -> None:
    """Write the error where the keeper above this process looks; nothing without one, or where it cannot be written
    (the exit code and the log still say it)."""
    path = os.environ.get(VARIABLE)
    if path:
        with contextlib.suppress(OSError, ValueError):
            write_json(Path(path), {"pid": os.getpid(), **error.document()})
