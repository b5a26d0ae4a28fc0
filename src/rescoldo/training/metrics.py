"""A run's logs: metrics.jsonl (the same for every run with this config), timings.jsonl (clock times), TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rescoldo.extras import install_command
from rescoldo.files import write_text
from rescoldo.run.layout import METRICS, TIMINGS, read_timings

WORSE = 1.001  # factor on the loss before training; smaller increases are considered noise


def worsened(before: Any, after: Any) -> str:
    """A sentence if the validation loss is higher after training than before it; "" if it is not, or is unknown.

    Args:
        before: mean validation loss before training, in nats per target token; None if it was not measured.
        after: of the best epoch.
    """
    known = all(isinstance(value, int | float) for value in (before, after))
    if not known or after <= WORSE * before:
        return ""
    return f"the model got worse: validation loss {after:.4f} after training, {before:.4f} before"


class MetricsLog:
    """metrics.jsonl, one JSON object a line. The whole text is also kept in memory: checkpoints include it, and lines
    that could not be written to a full disk are written later. It contains only numbers that do not depend on the
    clock.
    """

    def __init__(self, output: Path, text: str, warn: Callable[[str], None]) -> None:
        self.path, self.text, self._warn = output / METRICS, text, warn
        self._whole = False  # whether the file has all of `text`
        self.rewrite()

    def append(self, record: dict[str, Any]) -> None:
        """Add a line."""
        line = json.dumps(record, allow_nan=False) + "\n"
        self.text += line
        if not self._whole:
            self.rewrite()
            return
        try:
            with open(self.path, "ab") as file:
                file.write(line.encode())
        except OSError as error:
            self._failed(error)

    def rewrite(self) -> None:
        """Replace the file's content; a failure is reported, and the write is repeated later."""
        try:
            write_text(self.path, self.text)
            self._whole = True
        except OSError as error:
            self._failed(error)

    def finish(self) -> None:
        """Like rewrite, but a failure is an error.

        Raises:
            OSError: from the system.
        """
        write_text(self.path, self.text)

    def _failed(self, error: OSError) -> None:
        if self._whole or not self.text:
            self._warn(f"{self.path.name} cannot be written now ({error.strerror}); the lines will be written later")
        self._whole = False


class Timings:
    """timings.jsonl: one line per event with the seconds since this process's start. Failures do not stop the run."""

    def __init__(self, output: Path) -> None:
        self.path = output / TIMINGS
        self._begin = time.monotonic()
        self.session = 1 + max((int(line["session"]) for line in read_timings(output)), default=0)
        with contextlib.suppress(OSError):
            text = self.path.read_bytes()
            if text and not text.endswith(b"\n"):  # a killed process's incomplete line
                with open(self.path, "ab") as file:
                    file.write(b"\n")

    def event(self, name: str, **values: Any) -> None:
        """Add a line."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        record = {"session": self.session, "t": round(time.monotonic() - self._begin, 3), "time": now, "event": name}
        with contextlib.suppress(OSError):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record | values) + "\n")


def wall_seconds(output: Path) -> float:
    """Seconds that processes have worked on this run, including lost work: the sum of each session's last time."""
    last: dict[int, float] = {}
    for line in read_timings(output):
        last[line["session"]] = max(line["t"], last.get(line["session"], 0.0))
    return sum(last.values())


def resumptions(output: Path) -> list[dict[str, Any]]:
    """When the run was resumed, and from which checkpoint."""
    return [
        {"time": line.get("time"), "checkpoint": line.get("checkpoint")}
        for line in read_timings(output)
        if line.get("event") == "resume"
    ]


class TensorBoard:
    """Event files in logs/. With a full disk or a missing package logging ends with one warning; the run continues.

    Importing TensorBoard takes a quarter of a second: a thread does it, and points are kept until it has.
    """

    _opening: threading.Thread | None = None

    def __init__(self, output: Path, first_step: int, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._writer: Any = None
        self._early: list[tuple[int, dict[str, float]]] = []
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if importlib.util.find_spec("tensorboard") is None:
            warn(f"no TensorBoard logs: tensorboard is not installed; to get it: {install_command('tensorboard')}")
            return
        self._opening = threading.Thread(target=self._open, args=(output, first_step), daemon=True, name="tensorboard")
        self._opening.start()

    def _open(self, output: Path, first_step: int) -> None:
        with self._tolerant():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(output / "logs"), purge_step=first_step or None)

    def add(self, step: int, **values: float) -> None:
        """Add a point for each value; `loss__train=…` is the curve loss/train."""
        if self._opening is not None and self._opening.is_alive():
            self._early.append((step, values))
            return
        self._opened()
        self._write(step, values)

    def _opened(self) -> None:
        """Wait until the files are open, and write what has come before."""
        if self._opening is None:
            return
        self._opening.join()
        self._opening = None
        for step, values in self._early:
            self._write(step, values)
        self._early = []

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            with self._tolerant():
                for name, value in values.items():
                    self._writer.add_scalar(name.replace("__", "/"), value, step)

    def flush(self) -> None:
        """Write the points to disk."""
        self._opened()
        if self._writer is not None:
            with self._tolerant():
                self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._opened()
        if self._writer is not None:
            with self._tolerant():
                self._writer.close()
            self._writer = None

    @contextlib.contextmanager
    def _tolerant(self) -> Any:
        try:
            yield
        except Exception as error:
            self._writer = None
            self._warn(f"the TensorBoard logs end here: {error}")
