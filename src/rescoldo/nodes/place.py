"""Communication between the launcher, which the user starts, and its worker under torchrun: files in a private folder.

torchrun starts and restarts the worker; the launcher lives as long as the run. It holds the lock, handles the signals,
and learns from these files how the worker ended, because an exit code alone would only make torchrun start it again.
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
class WorkerFolder:
    """The folder shared by one launcher and its worker.

    job.json: the worker's task. worker.json: the current worker. stop: the user wants to stop. outcome.json: the end.
    """

    folder: Path

    def write_job(self, **job: Any) -> None:
        """Launcher: write the worker's task, which it reads at each start."""
        write_json(self.folder / "job.json", job)

    def job(self) -> dict[str, Any]:
        """Worker: read the task."""
        return read_json(self.folder / "job.json") or {}

    def begin(self) -> None:
        """Worker: announce this process."""
        (self.folder / "outcome.json").unlink(missing_ok=True)
        write_json(self.folder / "worker.json", {"pid": os.getpid(), "start": process_start(os.getpid())})

    def worker(self) -> int | None:
        """The worker's pid; None if there is no worker now."""
        known = read_json(self.folder / "worker.json") or {}
        pid = known.get("pid")
        return pid if isinstance(pid, int) and process_start(pid) == known.get("start") else None

    def ask_to_stop(self) -> None:
        """Launcher: announce that the worker's next signal comes from the user and not from torchrun."""
        (self.folder / "stop").touch()

    @property
    def stopping(self) -> bool:
        """Whether the user wants to stop."""
        return (self.folder / "stop").exists()

    def end(self, code: int, **more: Any) -> None:
        """Worker: report the end, with this exit code; torchrun must not start another worker."""
        write_json(self.folder / "outcome.json", {"code": code, **more})

    def outcome(self) -> dict[str, Any] | None:
        """The worker's report of its end; None before that."""
        return read_json(self.folder / "outcome.json")


def current_folder() -> WorkerFolder | None:
    """The folder of this worker; None for a process that no launcher has started."""
    folder = os.environ.get(VARIABLE)
    return WorkerFolder(Path(folder)) if folder else None
