"""Signals that ask a run to end: the first is answered at the next safe point, a second Ctrl-C obeyed at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from rescoldo.run.lock import process_start, read_holder

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_KEYSTROKE_SECONDS = 0.3  # launchers pass on the Ctrl-C that the terminal has already sent us


class _Answered:
    """Context manager within which `_handle` answers SIGNALS.

    A signal that was ignored when the process started stays ignored (nohup's SIGHUP). Outside the main thread, where
    Python allows no handlers, nothing is installed.
    """

    def __init__(self) -> None:
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class Interruption(_Answered):
    """Around work that can only stop between two pieces.

    Attributes:
        received: the signal that asked us to end, None so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = None
        self._at = 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # plain writes: a handler may interrupt Python's own buffered output
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
            _write(f"\n{self.received.name}: finishing this micro-batch, then saving (Ctrl-C again leaves at once)\n")
        elif number == signal.SIGINT and time.monotonic() - self._at > SAME_KEYSTROKE_SECONDS:
            if os.isatty(2):
                _write("\x1b[?25h")  # the progress bar has hidden the cursor
            os._exit(128 + number)


class EndedBySignal(BaseException):
    """A signal came where nothing has to be finished first. Like KeyboardInterrupt no Exception, so that no library
    swallows it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class EndAtOnce(_Answered):
    """Around work that may be broken off anywhere: a signal raises EndedBySignal. Interruption may be used inside and
    then has the say."""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise EndedBySignal(number)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def send_to(output: Path, number: signal.Signals) -> bool:
    """Send a signal to the process that holds `output`; never to another that got its pid meanwhile. One that stands
    still (Ctrl-Z) is continued, so that it can answer.

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
        if process_start(holder.pid) != holder.start:  # looked at with the handle in hand: it cannot change any more
            return False
        signal.pidfd_send_signal(fd, number)
        signal.pidfd_send_signal(fd, signal.SIGCONT)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True
