"""The history of a run, read from its files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.run.layout import METRICS, read_json_lines, read_timings

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Interruption:
    """A time in which the run made no progress.

    Attributes:
        what: "stopped and saved", "killed or crashed", "the machine slept" or "made no progress".
        at: its beginning (ISO 8601); "" if unknown.
        away: seconds until the run continued; None if it has not, or if this is unknown.
        lost: seconds of work that had to be repeated.
        checkpoint: the checkpoint that the run continued from; "" if none.
    """

    what: str
    at: str
    away: float | None
    lost: float
    checkpoint: str


@dataclass(frozen=True)
class History:
    """Curves are (optimizer step, value); rates are tokens per second."""

    train_loss: Points
    val_loss: Points
    learning_rate: Points
    gradient_norm: Points
    tokens_per_second: Points
    epochs: list[dict[str, Any]]
    interruptions: list[Interruption]
    worked: float


def read_history(output: Path) -> History:
    """Read metrics.jsonl and timings.jsonl; lines that are damaged are left out."""
    metrics, timings = read_json_lines(output / METRICS), read_timings(output)
    epochs = [line for line in metrics if _has(line, "step", "train_loss", "val_loss", "epoch")]
    return History(
        train_loss=_points(metrics, "loss"),
        val_loss=_points(metrics, "val_loss"),
        learning_rate=_points(metrics, "lr"),
        gradient_norm=_points(metrics, "grad_norm"),
        tokens_per_second=sorted(dict(_points(timings, "tokens_per_second")).items()),
        epochs=epochs,
        interruptions=list(_interruptions(timings)),
        worked=_worked(timings),
    )


def _has(line: dict[str, Any], *names: str) -> bool:
    return all(isinstance(line.get(name), int | float) for name in names)


def _points(lines: Iterable[dict[str, Any]], name: str) -> Points:
    return [(float(line["step"]), float(line[name])) for line in lines if _has(line, "step", name)]


def _worked(timings: list[dict[str, Any]]) -> float:
    last: dict[int, float] = {}
    for line in timings:
        last[line["session"]] = max(line["t"], last.get(line["session"], 0.0))
    return sum(last.values())


def _interruptions(timings: list[dict[str, Any]]) -> Iterable[Interruption]:
    sessions: dict[int, list[dict[str, Any]]] = {}
    for line in timings:
        sessions.setdefault(line["session"], []).append(line)
    before: list[dict[str, Any]] | None = None
    for lines in sessions.values():
        if before is not None:
            yield _between(before, lines)
        for line in lines:
            if line.get("event") in ("suspended", "stood still") and isinstance(line.get("seconds"), int | float):
                what = "the machine slept" if line["event"] == "suspended" else "made no progress"
                yield Interruption(what, str(line.get("time", "")), float(line["seconds"]), 0.0, "")
        before = lines


def _between(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Interruption:
    """The interruption between two sessions of a run."""
    last, first = before[-1], after[0]
    ended, began = _moment(last), _moment(first)
    away = max(0.0, began - ended) if ended is not None and began is not None else None
    resume = next((line for line in after if line.get("event") == "resume"), {})
    checkpoint = str(resume.get("checkpoint") or "")
    if any(line.get("event") == "stop" for line in before):
        return Interruption("stopped and saved", str(last.get("time", "")), away, 0.0, checkpoint)
    saved = max((line["t"] for line in before if line.get("event") == "checkpoint"), default=before[0]["t"])
    lost = max(0.0, last["t"] - saved)
    return Interruption("killed or crashed", str(last.get("time", "")), away, lost, checkpoint)


def _moment(line: dict[str, Any]) -> float | None:
    try:
        return time.mktime(time.strptime(str(line.get("time"))[:19], "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None
