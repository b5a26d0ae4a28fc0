"""A cache of answers: JSON Lines with the hash of everything that determines an answer."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.models.predictor import Prediction

_FIELDS = ("text", "ended", "tokens", "seconds", "fields")  # of a prediction, as in a document's row


def key(fingerprint: str, prompt: str, sampling: Sampling) -> str:
    """SHA-256 over model, prompt and sampling (hex)."""
    content = json.dumps([fingerprint, prompt, asdict(sampling)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class PredictionCache:
    """Predictions in a JSON Lines file, one fsynced line each. Damaged lines are ignored.

    Without a path they are kept in memory only. Several models may share a file, and several threads an instance.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, Prediction] = {}
        self._needs_newline = False
        self._lock = threading.Lock()
        if path is None:
            return
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
        """The prediction with this key; None if there is none."""
        return self._known.get(name)

    def put(self, name: str, prediction: Prediction) -> None:
        """Store a prediction; it is on disk when this returns.

        Raises:
            RescoldoError: the file cannot be written.
        """
        self._known[name] = prediction
        if self.path is None:
            return
        line = json.dumps({"key": name, "prediction": asdict(prediction)}) + "\n"
        try:
            with self._lock, open(self.path, "ab") as file:
                file.write((b"\n" if self._needs_newline else b"") + line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RescoldoError(
                f"cannot be written: {error.strerror or error}",
                where=str(self.path),
                fix="free some space or choose another --output; answers written so far are kept",
                exit_code=EXIT_FAILURE,
            ) from None
        self._needs_newline = False

    def reuse(self, document: Any) -> None:
        """Add the answers of an earlier evaluation or comparison, without writing them again."""
        for name, prediction in _answers(document):
            self._known.setdefault(name, prediction)

    def remove(self) -> None:
        """Delete the file, when its answers are in the result."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(line: bytes) -> tuple[str, Prediction] | None:
    try:
        value: Any = json.loads(line)
        return _entry(value["key"], value["prediction"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _answers(document: Any) -> Iterator[tuple[str, Prediction]]:
    """The answers in a document; malformed ones are ignored."""
    models = document.get("models") if isinstance(document, dict) else None
    judges = document.get("judges") if isinstance(document, dict) else None
    parts: list[Any] = [*models.values(), document.get("training")] if isinstance(models, dict) else []
    parts += judges if isinstance(judges, list) else []
    for part in parts:
        rows = part.get("predictions", part.get("answers")) if isinstance(part, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and not row.get("error"):
                found = _entry(row.get("key"), {name: row[name] for name in _FIELDS if name in row})
                if found:
                    yield found


def _entry(name: Any, kept: Any) -> tuple[str, Prediction] | None:
    try:
        prediction = Prediction(**kept)
    except TypeError:
        return None
    whole = (
        isinstance(name, str)
        and isinstance(prediction.text, str)
        and isinstance(prediction.ended, bool)
        and isinstance(prediction.tokens, int)
        and isinstance(prediction.seconds, int | float)
        and math.isfinite(prediction.seconds)
        and isinstance(prediction.fields, dict | None)
    )
    return (name, prediction) if whole else None
