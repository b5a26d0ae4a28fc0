"""Time in which a run could work: what passed while the machine slept or the process was stopped does not count."""

from __future__ import annotations

import threading
import time

STOPPED_AFTER = 5.0  # seconds without a sign of life of any thread, and hardly any CPU time: the process was stopped
BUSY_SHARE = 0.2  # of the gap in CPU time from which on it was not a stop


def asleep_seconds() -> float:
    """Seconds for which this machine has been suspended since it started (Linux; 0 elsewhere)."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class WorkClock:
    """A monotonic clock that stands still while the process was stopped (SIGSTOP, a frozen container or virtual
    machine) or the machine slept. A thread must call `now` at least every second: only a gap between its calls tells
    a stopped process from one that computes.

    Attributes:
        stopped: seconds for which the process stood still.
        suspended: seconds for which the machine slept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._cpu = time.process_time()
        self._asleep = asleep_seconds()
        self.stopped = 0.0
        self.suspended = 0.0

    def now(self) -> float:
        """Seconds on this clock; only differences mean anything."""
        with self._lock:
            monotonic, cpu, asleep = time.monotonic(), time.process_time(), asleep_seconds()
            gap = monotonic - self._last
            if gap >= STOPPED_AFTER and cpu - self._cpu < BUSY_SHARE * gap:
                self.stopped += gap
            if asleep - self._asleep > 1.0:
                self.suspended += asleep - self._asleep
                self._asleep = asleep
            self._last, self._cpu = monotonic, cpu
            return monotonic - self.stopped  # the monotonic clock itself stands still while the machine sleeps
