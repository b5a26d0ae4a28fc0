"""Limits the memory that a training pass keeps, before the kernel kills the process."""

from __future__ import annotations

import threading


class MemoryGuard:
    """Limits the layers whose activations a training pass keeps; the others are recomputed in the backward pass, with
    the same bits. A pass uses the memory that is free when it begins; this lowers the number if that was too much.

    Attributes:
        cap: maximum number of layers; None: limited only by the free memory.
    """

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self._lock = threading.Lock()
        self._kept: int | None = None  # number of layers kept by the current pass, if known
        self._lowered = False  # during the current pass

    def before_pass(self, fitting: int) -> int | None:
        """The number of layers that a pass may keep if `fitting` fit into the memory that is free now; None if the pass
        may decide itself."""
        with self._lock:
            self._kept = fitting if self.cap is None else min(self.cap, fitting)
            self._lowered = False
            return None if self.cap is None else self._kept

    def lower(self) -> tuple[int, int] | None:
        """Halve the number of layers for the next passes, once per pass.

        Returns:
            (old number, new number); None if it was already lowered, is unknown, or cannot be lowered further.
        """
        with self._lock:
            if self._lowered or not self._kept:
                return None
            before, self._lowered = self._kept, True
            self.cap = before // 2
            return before, self.cap


def cap_after_kill(cap: int | None, n_layers: int) -> int:
    """The limit to start with after the kernel has killed a run that had `cap`."""
    return (n_layers if cap is None else cap) // 2
