"""A clock for working time: time in which the machine slept or the process was stopped does not count."""

from __future__ import annotations

import threading
import time

STOPPED_AFTER = 5.0  # a longer gap with hardly any CPU time means that the process was stopped
BUSY_SHARE = 0.2  # with at least this fraction of the gap in CPU time it was busy, not stopped


def asleep_seconds() -> float:
    """Seconds for which this machine has been suspended since it started (Linux; 0 elsewhere)."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class WorkClock:
    """A monotonic clock that pauses while the process is stopped (SIGSTOP, a frozen container or virtual machine) or
    the machine sleeps. A thread must call `now` at least every second, because only gaps between its calls distinguish
    a stopped process from a busy one.

    Attributes:
        stopped: seconds for which the process was stopped.
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
        """Seconds on this clock; only differences are meaningful."""
        with self._lock:
            monotonic, cpu, asleep = time.monotonic(), time.process_time(), asleep_seconds()
            gap = monotonic - self._last
            if gap >= STOPPED_AFTER and cpu - self._cpu < BUSY_SHARE * gap:
                self.stopped += gap
            if asleep - self._asleep > 1.0:
                self.suspended += asleep - self._asleep
                self._asleep = asleep
            self._last, self._cpu = monotonic, cpu
            return monotonic - self.stopped  # the monotonic clock itself pauses while the machine sleeps
