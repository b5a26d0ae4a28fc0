"""What the process that was started by hand and the worker under torchrun tell each other: files in a private folder.

torchrun starts and restarts the worker; the one above it lives as long as the run does. It holds the lock, takes the
signals, and learns from here how the worker ended: an exit code alone would only make torchrun try again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.files import read_json, write_json
from rescoldo.run.lock import process_start

VARIABLE = "RESCOLDO_NODES"


@dataclass(frozen=True)
class Place:
    """The folder, shared by one launcher and its worker.

    job.json: what to do. worker.json: who does it now. stop: the user wants to end. outcome.json: how it ended.
    """

    folder: Path

    def write_job(self, **job: Any) -> None:
        """The launcher: what the worker is to do, each time it is started."""
        write_json(self.folder / "job.json", job)

    def job(self) -> dict[str, Any]:
        """What to do."""
        return read_json(self.folder / "job.json") or {}

    def begin(self) -> None:
        """The worker: here I am."""
        (self.folder / "outcome.json").unlink(missing_ok=True)
        write_json(self.folder / "worker.json", {"pid": os.getpid(), "start": process_start(os.getpid())})

    def worker(self) -> int | None:
        """The worker's pid, None if there is none now."""
        known = read_json(self.folder / "worker.json") or {}
        pid = known.get("pid")
        return pid if isinstance(pid, int) and process_start(pid) == known.get("start") else None

    def ask_to_stop(self) -> None:
        """The launcher: the next signal that the worker gets is the user's, not torchrun's."""
        (self.folder / "stop").touch()

    @property
    def stopping(self) -> bool:
        """Whether the user has asked to end."""
        return (self.folder / "stop").exists()

    def end(self, code: int, **more: Any) -> None:
        """The worker: it is over, with this exit code; nothing is to be started again."""
        write_json(self.folder / "outcome.json", {"code": code, **more})

    def outcome(self) -> dict[str, Any] | None:
        """What the worker said when it was over, None so far."""
        return read_json(self.folder / "outcome.json")


def current_place() -> Place | None:
    """The place of this worker; None for a process that was started otherwise."""
    folder = os.environ.get(VARIABLE)
    return Place(Path(folder)) if folder else None
