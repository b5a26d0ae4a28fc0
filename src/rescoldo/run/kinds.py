"""The states of a run, one row each: properties of a state are fields of its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One state.

    Attributes:
        mark: a symbol before its name in lists of runs.
        alive: a process is running, as far as can be seen.
        active: it is computing now, so acting on a warning can help.
        reports: state.json is from this process and current.
        finished: the adapter is written.
        failed: it ended with an error or was killed (exit code 1 of `status`).
        silent: its process could not report its end, so `status` must write its page.
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
        """Whether it ended on this machine before it was finished."""
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
