"""The states that a run can be seen in, a row each: what commands and pages ask is a field of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One state.

    Attributes:
        mark: before its name, where runs are listed.
        alive: a process works there, as far as can be seen.
        active: it computes now, so that what the user does about a warning can help.
        reports: what state.json says is of this process, and of now.
        finished: the adapter is written.
        failed: it ended by an error or was killed (exit code 1 of `status`).
        silent: its process could not say so itself, so that its page must be written for it.
        elsewhere: it can be seen and stopped from another host only.
        exists: whether there is a run at all.
    """

    mark: str = "·"
    alive: bool = False
    active: bool = False
    reports: bool = False
    finished: bool = False
    failed: bool = False
    silent: bool = False
    elsewhere: bool = False
    exists: bool = True

    @property
    def ended(self) -> bool:
        """Whether it ended before it was finished, here."""
        return self.exists and not (self.alive or self.finished or self.elsewhere)


KINDS: Mapping[str, Kind] = {
    "starting": Kind("▶", alive=True, active=True),
    "running": Kind("▶", alive=True, active=True, reports=True),
    "paused": Kind("⏸", alive=True, reports=True),
    "finished": Kind("✅", finished=True),
    "stopped": Kind("⏸"),
    "failed": Kind("❌", failed=True),
    "died": Kind("❌", failed=True, silent=True),
    "unknown": Kind(elsewhere=True),
    "never": Kind(exists=False),
}
