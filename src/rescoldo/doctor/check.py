"""One line of `rescoldo doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from rescoldo.errors import EXIT_FAILURE, EXIT_USAGE, RescoldoError

Level = Literal["ok", "warning", "failure"]
MARKS: dict[Level, str] = {"ok": "✅", "warning": "⚠️ ", "failure": "❌"}


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at ("disk", "memory", …).
        level: "failure": the run would not come through. "warning": it would, slower or with a worse result.
        what: what was found, in one sentence.
        remedy: what to do about it, as a command to type where there is one; "" for "ok".
        figures: the numbers behind it; sizes in bytes.
    """

    name: str
    level: Level
    what: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def ok(name: str, what: str, **figures: Any) -> Check:
    """All is well."""
    return Check(name, "ok", what, "", figures)


def warning(name: str, what: str, remedy: str, **figures: Any) -> Check:
    """It would come through."""
    return Check(name, "warning", what, remedy, figures)


def failure(name: str, what: str, remedy: str, **figures: Any) -> Check:
    """It would not."""
    return Check(name, "failure", what, remedy, figures)


def refused(name: str, error: RescoldoError) -> Check:
    """A failure that the program itself has named."""
    where = f"{error.where}: " if error.where else ""
    return failure(name, f"{where}{error.what}", error.fix)


def exit_code(checks: Iterable[Check], *, strict: bool) -> int:
    """0; 1 with a failure; 2 with a warning where `strict`."""
    levels = {check.level for check in checks}
    if "failure" in levels:
        return EXIT_FAILURE
    return EXIT_USAGE if strict and "warning" in levels else 0
