"""How a detached run's process tells its keeper the error that ended it: as JSON, in a file chosen by the keeper."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rescoldo.errors import RescoldoError
from rescoldo.files import write_json

VARIABLE = "RESCOLDO_ERROR_FILE"


def note_error(error: RescoldoError) -> None:
    """Write the error for this process's keeper. Does nothing without a keeper, or if the file cannot be written (the
    exit code and the log still show the error)."""
    path = os.environ.get(VARIABLE)
    if path:
        with contextlib.suppress(OSError, ValueError):
            write_json(Path(path), {"pid": os.getpid(), **error.document()})
