"""Signals that ask a run to end: the first is handled at the next safe point, a second Ctrl-C immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from rescoldo.run.lock import process_start, read_holder

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_KEYSTROKE_SECONDS = 0.3  # launchers forward the Ctrl-C that the terminal has already sent to us
RAISE_AGAIN_SECONDS = 0.25  # interval for raising an EndedBySignal that was swallowed


class _Answered:
    """Context manager in which `_handle` handles SIGNALS.

    A signal that was ignored when the process started stays ignored (nohup's SIGHUP). Outside the main thread, where
    Python allows no handlers, nothing is installed.

    Attributes:
        received: the signal that asked us to end; None before that.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _unanswered(self) -> signal.Signals | None:
        """The signal that an outer EndAtOnce has received and whose exception was swallowed; from now on this context
        handles it."""
        for handler in self._before.values():
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, EndAtOnce) and outer.received is not None:
                received, outer.received = outer.received, None
                return received
        return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class Interruption(_Answered):
    """For work that can only stop between two units."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 0.0

    def __enter__(self) -> Self:
        super().__enter__()
        if (number := self._unanswered()) is not None:
            self._handle(number, None)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # os.write only: a handler may interrupt Python's own buffered output
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
            _write(f"\n{self.received.name}: finishing this micro-batch, then saving (Ctrl-C again leaves at once)\n")
        elif number == signal.SIGINT and time.monotonic() - self._at > SAME_KEYSTROKE_SECONDS:
            if os.isatty(2):
                _write("\x1b[?25h")  # show the cursor that the progress bar has hidden
            os._exit(128 + number)


class EndedBySignal(BaseException):
    """A signal came where nothing has to be finished first. Like KeyboardInterrupt it is not an Exception, so that no
    library swallows it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class EndAtOnce(_Answered):
    """For work that may be interrupted anywhere: a signal raises EndedBySignal. An Interruption inside takes
    precedence.

    Python calls a handler between any two instructions, also inside a weak reference's callback, a `__del__` or a
    callback from C, where an exception is printed and dropped (imports have such callbacks). So the exception is raised
    again every RAISE_AGAIN_SECONDS until it propagates, and at the latest when this context, or one inside it, is
    entered or left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alarm: Any = None
        self._timer: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        if (number := self._unanswered()) is not None:
            super().__exit__(None, None, None)
            raise EndedBySignal(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)
            signal.signal(signal.SIGALRM, self._alarm)
            self._timer = None
        super().__exit__(kind, error, trace)
        if self.received is not None and (error is None or isinstance(error, Exception)):
            raise EndedBySignal(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._timer is None:
            self._alarm = signal.signal(signal.SIGALRM, self._raise_again)
            self._timer = signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_SECONDS, RAISE_AGAIN_SECONDS)
        raise EndedBySignal(number)

    def _raise_again(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and not _on_its_way():
            raise EndedBySignal(self.received)


def _on_its_way() -> bool:
    """Whether an EndedBySignal is propagating: `finally` blocks and context managers are cleaning up."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, EndedBySignal):
            return True
        error = error.__context__
    return False


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def send_to(output: Path, number: signal.Signals) -> bool:
    """Send a signal to the process that holds `output`, and never to another process with the same pid. A stopped
    process (Ctrl-Z) is continued, so that it can react.

    Returns:
        False if no process of this machine holds it.
    """
    holder = read_holder(output)
    if holder is None or not holder.alive:
        return False
    if not hasattr(os, "pidfd_open"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder.pid, number)
            os.kill(holder.pid, signal.SIGCONT)
            return True
        return False
    try:
        fd = os.pidfd_open(holder.pid)
    except OSError:
        return False
    try:
        if process_start(holder.pid) != holder.start:  # checked while we hold the handle, so that it cannot change
            return False
        signal.pidfd_send_signal(fd, number)
        signal.pidfd_send_signal(fd, signal.SIGCONT)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True
