"""The state of a sweep, read from its directory. No large imports, for `status` and similar commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rescoldo.errors import RescoldoError
from rescoldo.files import quote, read_json
from rescoldo.invocation import program
from rescoldo.units import count

FILE = "sweep.json"
Trial = TypeVar("Trial", bound=Mapping[str, Any])


@dataclass(frozen=True)
class SweepState:
    """A sweep as seen from outside.

    Attributes:
        finished: whether nothing is left to try.
        trial: the running one, else the best one so far; "" before the first has finished.
        words: the state, for people.
    """

    finished: bool
    trial: str
    words: str


def read_sweep(output: Path) -> SweepState | None:
    """The sweep in a directory; None if there is no readable one."""
    document = read_json(output / FILE)
    if document is None or not isinstance(document.get("trials"), list):
        return None
    trials = [trial for trial in document["trials"] if isinstance(trial, dict) and _is_name(trial.get("name"))]
    done = of_status(trials, "finished")
    running = next((str(trial["name"]) for trial in of_status(trials, "running")), "")
    best = (document.get("best") or {}).get("by_score")
    words = f"{count(len(done), 'trial')} finished"
    if running:
        words += f", {running} is being trained or scored"
    for trial in done:
        if trial["name"] == best and isinstance(trial.get("score"), int | float):
            words += f"; best so far: {best}, {trial['score']:.1%}"
    shown = running or (str(best) if _is_name(best) else "")
    return SweepState(bool(document.get("finished")), shown, words)


def of_status(trials: Iterable[Trial], status: Literal["running", "finished", "failed"]) -> list[Trial]:
    """The trials with this status."""
    return [trial for trial in trials if trial.get("status") == status]


def refuse_sweep(output: Path, command: str) -> None:
    """Refuse a sweep's directory in a command that takes a single run; `command` is the command's name.

    Raises:
        RescoldoError: the directory is a sweep's.
    """
    found = read_sweep(output)
    if found is not None:
        trial = found.trial or "trial-001"
        raise RescoldoError(
            "is a sweep, not a run", where=str(output), fix=f"{program()} {command} {quote(output / trial)}"
        )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("trial-") and value.removeprefix("trial-").isdecimal()
