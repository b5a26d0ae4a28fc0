"""Bounds on the memory that a training pass keeps, lowered before the kernel kills the process."""

from __future__ import annotations

import threading


class MemoryGuard:
    """Bounds for how many layers a training pass keeps activations; the others are recomputed in the backward pass,
    bit for bit the same. A pass takes what is free when it begins; this lowers it when that turned out to be too much.

    Attributes:
        cap: at most this many layers; None: no bound but the free memory.
    """

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self._lock = threading.Lock()
        self._kept: int | None = None  # by the pass that runs now, as far as known
        self._lowered = False  # during this pass

    def before_pass(self, fitting: int) -> int | None:
        """How many layers a pass may keep, given that `fitting` fit into the memory that is free now; None where the
        pass may find that out by itself."""
        with self._lock:
            self._kept = fitting if self.cap is None else min(self.cap, fitting)
            self._lowered = False
            return None if self.cap is None else self._kept

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
