"""Memory that a run may take, and what it gives back before the kernel kills."""

from __future__ import annotations

import threading
from typing import Any

import psutil

from rescoldo.run.cgroup import memory_left, memory_limit

LOW_SHARE = 0.04  # of the memory there is: below this the kernel may kill at any moment
LOW_BYTES = 200_000_000


def memory_total() -> int:
    """Bytes that processes here may hold together: the machine's memory, or the container's limit."""
    total = int(psutil.virtual_memory().total)
    return min(total, memory_limit() or total)


_ceiling: int | None = None  # of this process, by the user's will


def limit_process(gigabytes: float | None) -> None:
    """From now on memory_available counts as if this process could grow to so many GB (10⁹ bytes) only; None: no bound.
    Mapped files count, as in what the system shows of a process."""
    global _ceiling
    _ceiling = None if gigabytes is None else int(gigabytes * 1e9)


def memory_available() -> int:
    """Bytes that this process may still take without swapping, within the container's limit and the user's."""
    available, left = int(psutil.virtual_memory().available), memory_left()
    if _ceiling is not None:
        available = min(available, _ceiling - int(psutil.Process().memory_info().rss))
    return max(0, available if left is None else min(available, left))


def low_mark() -> int:
    """Free bytes below which memory counts as running out."""
    return int(max(LOW_SHARE * memory_total(), min(LOW_BYTES, 0.2 * memory_total())))


class MemoryGuard:
    """Bounds for how many layers a training pass keeps activations; the others are computed again on the way back,
    bit for bit the same. A pass takes what is free when it begins; this lowers it when that turned out to be too much.

    Attributes:
        cap: at most this many layers; None: no bound but the free memory.
    """

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self._lock = threading.Lock()
        self._kept: int | None = None  # by the pass that runs now, as far as known
        self._lowered = False  # during this pass

    def before_pass(self, model: Any, tokens: int) -> None:
        """Set `model.keep_layers` for a pass over `tokens` rows. Models without activations to keep are left alone."""
        config, dtype = getattr(model, "config", None), getattr(model, "dtype", None)
        if config is None or dtype is None or not hasattr(model, "keep_layers"):
            return
        from rescoldo.engine.auto import layers_to_keep

        fitting = layers_to_keep(config, dtype.itemsize, tokens, free=memory_available())
        with self._lock:
            self._kept = fitting if self.cap is None else min(self.cap, fitting)
            self._lowered = False
            model.keep_layers = None if self.cap is None else self._kept

    def lower(self) -> tuple[int, int] | None:
        """Halve what the next passes keep, once a pass.

        Returns:
            (layers kept until now, from now on), None if it was lowered already or nothing is known or left to give.
        """
        with self._lock:
            if self._lowered or not self._kept:
                return None
            before, self._lowered = self._kept, True
            self.cap = before // 2
            return before, self.cap


def cap_after_kill(cap: int | None, n_layers: int) -> int:
    """The bound to start with after the kernel has killed a run that had `cap`."""
    return (n_layers if cap is None else cap) // 2


def own_memory() -> int:
    """Bytes that this process holds for itself. Pages of mapped files (the base model's) do not count: the system
    takes them back when it needs room."""
    try:
        with open("/proc/self/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        return 1024 * sum(int(lines[name].split()[0]) for name in (b"RssAnon", b"RssShmem"))
    except (OSError, KeyError, ValueError, IndexError):
        return int(psutil.Process().memory_info().rss)
