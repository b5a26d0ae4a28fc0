"""The result of one check of `rescoldo doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from rescoldo.errors import EXIT_FAILURE, EXIT_USAGE, RescoldoError

Level = Literal["ok", "warning", "failure"]
MARKS: dict[Level, str] = {"ok": "✅", "warning": "⚠️ ", "failure": "❌"}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: the subject ("disk", "memory", …).
        level: "failure": the run would fail. "warning": it would work, but more slowly or with a worse result.
        what: the finding, in one sentence.
        remedy: what to do about it, if possible a command to type; "" for "ok".
        figures: the numbers that it is based on; sizes in bytes.
    """

    name: str
    level: Level
    what: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def ok(name: str, what: str, **figures: Any) -> Check:
    """A passed check."""
    return Check(name, "ok", what, "", figures)


def warning(name: str, what: str, remedy: str, **figures: Any) -> Check:
    """A problem that does not stop the run."""
    return Check(name, "warning", what, remedy, figures)


def failure(name: str, what: str, remedy: str, **figures: Any) -> Check:
    """A problem that stops the run."""
    return Check(name, "failure", what, remedy, figures)


def refused(name: str, error: RescoldoError) -> Check:
    """A failure from an error of the program itself."""
    where = f"{error.where}: " if error.where else ""
    return failure(name, f"{where}{error.what}", error.fix)


def exit_code(checks: Iterable[Check], *, strict: bool) -> int:
    """The exit code: 0; 1 with a failure; 2 with a warning if `strict`."""
    levels = {check.level for check in checks}
    if "failure" in levels:
        return EXIT_FAILURE
    return EXIT_USAGE if strict and "warning" in levels else 0
