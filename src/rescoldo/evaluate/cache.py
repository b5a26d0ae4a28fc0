"""Answers that were already paid for: JSON lines under a hash of everything that decides them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.evaluate.predictor import Prediction


def key(fingerprint: str, prompt: str, sampling: Sampling) -> str:
    """SHA-256 over model, prompt and sampling (hex)."""
    content = json.dumps([fingerprint, prompt, asdict(sampling)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class PredictionCache:
    """Predictions in a JSON Lines file, one fsynced line each. A line that is damaged counts as not there.

    Several models may share one file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Prediction] = {}
        self._needs_newline = False
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
        self._needs_newline = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            found = _read(line)
            if found:
                self._known[found[0]] = found[1]

    def get(self, name: str) -> Prediction | None:
        """The prediction kept under this key."""
        return self._known.get(name)

    def put(self, name: str, prediction: Prediction) -> None:
        """Keep a prediction; it is on the disk when this returns.

        Raises:
            RescoldoError: the file cannot be written.
        """
        line = json.dumps({"key": name, "prediction": asdict(prediction)}) + "\n"
        try:
            with open(self.path, "ab") as file:
                file.write((b"\n" if self._needs_newline else b"") + line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RescoldoError(
                f"cannot be written: {error.strerror or error}",
                where=str(self.path),
                fix="make room or choose another --output; answers written so far are kept",
                exit_code=EXIT_FAILURE,
            ) from None
        self._needs_newline = False
        self._known[name] = prediction

    def remove(self) -> None:
        """Delete the file: its answers stand in the result now."""
        self.path.unlink(missing_ok=True)


def _read(line: bytes) -> tuple[str, Prediction] | None:
    try:
        value: Any = json.loads(line)
        kept = value["prediction"]
        prediction = Prediction(**kept)
        whole = (
            isinstance(prediction.text, str)
            and isinstance(prediction.ended, bool)
            and isinstance(prediction.tokens, int)
            and isinstance(prediction.seconds, int | float)
        )
        return (str(value["key"]), prediction) if whole else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
