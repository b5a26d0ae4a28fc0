"""Standard output and standard error that cannot end a run.

When a terminal is closed, the reader of a pipe exits, or a log's disk is full, writing fails, and Python, rich and
other libraries react in different ways (OSError, SystemExit, a second failure at exit). This module replaces a failing
file descriptor, once and for the whole process, by a log file, so that everything that writes to it later works,
including native code and child processes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = {1: "standard output", 2: "standard error"}
STALL_SECONDS = 60.0  # timeout for a terminal or pipe that accepts no bytes (Ctrl-S, a stopped reader)
CHUNK_BYTES = 512  # at most PIPE_BUF on every system: a pipe that is ready accepts this much without blocking

_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_absent: set[int] = set()  # descriptors that were closed when this process was started
_lost: dict[int, str] = {}  # descriptor → why it was replaced


def fill_absent() -> None:
    """Open those of the descriptors 0 to 2 that were closed when the process was started. Otherwise the next opened
    files would get their numbers, and every message would be written into them. Must be called before anything is
    opened."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            _absent.add(fd)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def lost(*descriptors: int) -> str:
    """Which of the standard streams (or only of `descriptors`) failed, and why; "" while all work."""
    return "; ".join(f"{NAMES[fd]}: {why}" for fd, why in sorted(_lost.items()) if fd in (descriptors or NAMES))


@contextlib.contextmanager
def unfailing(log: Path | None) -> Iterator[None]:
    """Inside the block, writing to sys.stdout and sys.stderr never raises. If writing fails, the descriptor is replaced
    by `log` (opened for appending), or by /dev/null if `log` is None or cannot be written.

    The folder of `log` need not exist yet: until it does, the text is buffered. In nested blocks the outermost `log`
    counts. Streams without a descriptor (a notebook's, a test's) are unchanged.
    """
    if isinstance(sys.stdout, _Stream) or isinstance(sys.stderr, _Stream):
        yield
        return
    place, before = _LogTarget(log), (sys.stdout, sys.stderr)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            fd = stream.fileno()
            if fd in NAMES:
                wrapped = _Stream(stream, fd, place)
                wrapped.flush()
                setattr(sys, name, wrapped)
    if log is not None:
        for fd in sorted(_absent & NAMES.keys()):
            place.replace(fd, "it was closed when this process was started")
    try:
        yield
    finally:
        place.settle()
        if isinstance(sys.stdout, _Stream):
            sys.stdout = before[0]
        if isinstance(sys.stderr, _Stream):
            sys.stderr = before[1]


class _LogTarget:
    """The replacement of failed descriptors."""

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self.lock = threading.RLock()
        self._kept: dict[int, int] = {}  # descriptor → temporary file, until the log's folder exists

    def replace(self, fd: int, why: str) -> None:
        """Replace a descriptor that cannot be written by the log."""
        with self.lock:
            if fd in _lost:
                return
            _lost[fd] = why
            target = self._open_log()
            if target is None and self.log is not None:
                with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
                    target = os.dup(file.fileno())
                    self._kept[fd] = os.dup(target)
            if target is None:
                target = os.open(os.devnull, os.O_WRONLY)
            os.dup2(target, fd)
            os.close(target)
            moment = time.strftime("%Y-%m-%d %H:%M:%S%z")
            words = f"--- {moment} {NAMES[fd]} cannot be written ({why}): its output follows here\n"
            with contextlib.suppress(OSError):
                os.write(fd, words.encode())

    def settle(self) -> None:
        """Move the buffered text into the log, as soon as the log can be written."""
        with self.lock:
            for fd, kept in list(self._kept.items()):
                target = self._open_log()
                if target is None:
                    return
                with contextlib.suppress(OSError):
                    os.lseek(kept, 0, os.SEEK_SET)
                    while data := os.read(kept, 1 << 16):
                        os.write(target, data)
                os.dup2(target, fd)
                os.close(target)
                os.close(kept)
                del self._kept[fd]

    def is_log(self, fd: int) -> bool:
        """Whether the descriptor is already the log."""
        try:
            return self.log is not None and os.path.samestat(os.fstat(fd), os.stat(self.log))
        except OSError:
            return False

    def _open_log(self) -> int | None:
        if self.log is None or not self.log.parent.is_dir():
            return None
        with contextlib.suppress(OSError):
            return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return None


class _Stream:
    """A text stream that replaces sys.stdout or sys.stderr; everything except writing is delegated to the original."""

    def __init__(self, stream: Any, fd: int, place: _LogTarget) -> None:
        self._stream, self._fd, self._place = stream, fd, place

    def write(self, text: str) -> int:
        """Write immediately. Never raises an error of the system."""
        data = text.encode(getattr(self._stream, "encoding", None) or "utf-8", errors="replace")
        with self._place.lock:
            self._place.settle()
            self._write(_plain(data) if self._fd in _lost else data)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what the original stream has buffered."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether it is still connected to a terminal."""
        try:
            return os.isatty(self._fd)
        except OSError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._some(data) :]
            except OSError as error:
                if not self._failed(error):
                    return  # the log itself failed: the next write tries again
                data = _plain(data)

    def _some(self, data: bytes) -> int:
        """Write a part of the data; return its length."""
        try:
            waits = not stat.S_ISREG(os.fstat(self._fd).st_mode)
        except OSError:
            waits = False
        if not waits:
            return os.write(self._fd, data)
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(1000 * STALL_SECONDS):
            raise TimeoutError(errno.ETIMEDOUT, f"nobody has read it for {STALL_SECONDS:.0f} s")
        try:
            return os.write(self._fd, data[:CHUNK_BYTES])
        except BlockingIOError:  # non-blocking, and another writer has filled it in the meantime
            time.sleep(0.01)
            return 0

    def _failed(self, error: Exception) -> bool:
        """Replace the descriptor; False if it was replaced before, or is the log itself."""
        if self._fd in _lost or self._place.is_log(self._fd):
            return False
        self._place.replace(self._fd, getattr(error, "strerror", None) or str(error))
        return True


def _plain(data: bytes) -> bytes:
    """The text of terminal output for a log: without colours and progress bars."""
    data = _COLOUR.sub(b"", data)
    return b"" if b"\x1b" in data or b"\r" in data else data
