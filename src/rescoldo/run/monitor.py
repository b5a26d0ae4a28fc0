"""A thread that keeps state.json up to date during training, and reports problems while they occur."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rescoldo.files import quote
from rescoldo.invocation import program
from rescoldo.run.guard import MemoryGuard
from rescoldo.run.signals import EndedBySignal
from rescoldo.run.state import StateFile
from rescoldo.run.streams import lost
from rescoldo.system.causes import Snapshot, causes, snapshot
from rescoldo.system.clock import WorkClock
from rescoldo.system.memory import low_mark, memory_available, own_memory
from rescoldo.units import clock as duration
from rescoldo.units import gigabytes

TICK_SECONDS = 0.5
SLOW = 1.5  # a step that takes this many times as long as expected is reported
SHORT_STEP = 0.5  # seconds; shorter steps are not judged
REPEAT_SECONDS = 600.0  # minimum time between two reports of the same problem
HISTORY = 50


class Listener(Protocol):
    """The receiver of messages: train.progress.Reporter."""

    def warn(self, text: str) -> None:
        """Print a warning."""


class Monitor:
    """Context manager around the work of one process.

    Attributes:
        clock: counts the time in which the process could work.
        guard: limits the layers that keep their activations.
        file: state.json.
    """

    def __init__(
        self,
        output: Path,
        listener: Listener,
        *,
        cap: int | None = None,
        expected_rate: float | None = None,
        event: Callable[..., None] = lambda name, **values: None,
    ) -> None:
        """
        Args:
            output: the run's directory.
            listener: receives the messages.
            cap: maximum number of layers that keep activations, after a run that was killed for memory.
            expected_rate: tokens per second measured by a plan; None without one.
            event: called with a name and values for timings.jsonl.
        """
        self.clock, self.guard, self.file = WorkClock(), MemoryGuard(cap), StateFile(output)
        self.file.state.keep_layers = cap
        self._listener, self._expected, self._event = listener, expected_rate, event
        self._rates: list[float] = []
        self._last: Snapshot | None = None
        self._fastest: float | None = None
        self._said: dict[str, float] = {}
        self._suspended = self._stopped = 0.0
        self._low = low_mark()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rescoldo-monitor", daemon=True)

    def __enter__(self) -> Monitor:
        try:
            self.file.update(now=True, free_bytes=memory_available())
            self._thread.start()
        except BaseException as error:  # a signal: state.json must not say that this process is still working
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.streams_are_lost()
        if isinstance(error, EndedBySignal):
            self.file.update(now=True, phase="stopped", signal=int(error.signal))
        elif error is not None:
            text = str(error).strip() or type(error).__name__
            self.file.update(now=True, phase="failed", error=text)

    def _watch(self) -> None:
        while not self._end.wait(TICK_SECONDS):
            with contextlib.suppress(Exception):  # the thread must survive values that cannot be read
                self.look()

    def look(self) -> None:
        """Update clocks, memory and state.json once."""
        self.clock.now()
        free, memory = memory_available(), own_memory()
        self.file.update(
            memory_bytes=memory,
            peak_memory_bytes=max(memory, self.file.state.peak_memory_bytes),
            free_bytes=free,
            suspended_seconds=round(self.clock.suspended, 1),
            stopped_seconds=round(self.clock.stopped, 1),
        )
        self.streams_are_lost()
        if self.clock.suspended > self._suspended:
            slept, self._suspended = self.clock.suspended - self._suspended, self.clock.suspended
            self._event("suspended", seconds=round(slept, 1))
            what = f"the machine slept for {duration(slept)}; this does not count for speed and time left"
            self.say("suspended", what, f"keep it awake: see `{program()} doctor`", again=True)
        if self.clock.stopped > self._stopped:
            stood, self._stopped = self.clock.stopped - self._stopped, self.clock.stopped
            self._event("stood still", seconds=round(stood, 1))
            what = f"this process was stopped for {duration(stood)}; this does not count for speed and time left"
            self.say("stopped", what, "by Ctrl-Z or SIGSTOP, or because its container was frozen", again=True)
        if free < self._low:
            self.memory_is_low(free)

    def streams_are_lost(self) -> None:
        """Report once that the terminal or pipe that this run was started on has closed."""
        what = lost()
        if what and "streams" not in self._said:
            where = quote(self.file.path.parent)
            self.say("streams", f"the run continues without its terminal ({what})", f"{program()} logs -f {where}")

    def memory_is_low(self, free: int) -> None:
        """Keep activations of fewer layers from the next pass on, and report it."""
        lowered = self.guard.lower()
        if lowered is not None:
            before, after = lowered
            what = (
                f"only {gigabytes(free)} of memory are left: activations are kept for {after} layers instead of "
                f"{before} from now on (slower, the same result)"
            )
            self._event("memory", free=free, keep_layers=after)
            self.file.update(keep_layers=after)
            self.say("memory", what, "end other programs to get the speed back at the next start", again=True)
        elif self.guard.cap == 0:
            what = f"only {gigabytes(free)} of memory are left, and activations are kept for as few layers as possible"
            self.say("memory is out", what, "end other programs, or the kernel may kill this one")

    def step_done(self, step: int, tokens: int, seconds: float) -> None:
        """Judge the time of an optimizer step over `tokens` tokens, and report likely causes if it is far too long."""
        before, self._last = self._last, snapshot()
        if self._last.clock:
            self._fastest = max(self._last.clock, self._fastest or 0.0)
        if seconds < SHORT_STEP:
            return
        rate = tokens / seconds
        usual = self.usual_rate()
        self._rates = [*self._rates, rate][-HISTORY:]
        if usual is None or before is None or rate * SLOW > usual:
            return
        found = causes(before, self._last, self._fastest)
        times = usual / rate
        what = f"step {step} took {seconds:.1f} s, {times:.1f} times as long as expected"
        if not found:
            self.say(
                "slow", f"{what}; no cause was found on this machine", f"`{program()} doctor` checks the whole machine"
            )
            return
        key = "slow: " + ", ".join(cause.kind for cause in found)
        self.say(key, f"{what}: {'; '.join(cause.what for cause in found)}", found[0].remedy)

    def usual_rate(self) -> float | None:
        """The expected tokens per second: the faster half of this process's steps, or the plan's rate if it is higher;
        None if neither is known."""
        seen = sorted(self._rates)[len(self._rates) // 2 :]
        known = [statistics.median(seen)] if len(self._rates) >= 3 else []
        return max(known + ([self._expected] if self._expected else []), default=None)

    def say(self, key: str, what: str, remedy: str, *, again: bool = False) -> None:
        """Report to the log and in state.json; the same `key` only every few minutes, unless `again`."""
        now = time.monotonic()
        if not again and now - self._said.get(key, float("-inf")) < REPEAT_SECONDS:
            return
        self._said[key] = now
        self._listener.warn(f"{what}\n    → {remedy}")
        self.file.trouble(what, remedy)

    def update(self, *, now: bool = False, **values: Any) -> None:
        """Set fields of state.json."""
        self.file.update(now=now, **values)
