"""Loaded by Python at its start: from here on this process has nothing that only Linux has, as far as rescoldo sees.

/proc and /sys are there for psutil alone, which has ways of its own on macOS.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time

_OWN = ("psutil", "_psutil", "torch")
_HIDDEN = ("/proc", "/sys")
_stat = os.stat


def _frames(depth: int):
    frame = sys._getframe(depth)
    while frame is not None:
        yield frame.f_globals.get("__name__", "")
        frame = frame.f_back


def _hidden(path: object) -> bool:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str | os.PathLike):
        return False
    text = os.fspath(path)
    return text.startswith(_HIDDEN) and not any(name.startswith(_OWN) for name in _frames(2))


def _audit(event: str, given: tuple[object, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and given and _hidden(given[0]):
        raise FileNotFoundError(2, "No such file or directory", given[0])


def _stat_without(path, *given, **named):
    if _hidden(path):
        raise FileNotFoundError(2, "No such file or directory", path)
    return _stat(path, *given, **named)


def _told_to_rescoldo(real, told: str):
    def answer() -> str:
        return told if sys._getframe(1).f_globals.get("__name__", "").startswith("rescoldo") else real()

    return answer


if os.environ.get("RESCOLDO_TEST_MACOS"):
    sys.addaudithook(_audit)
    os.stat = _stat_without
    platform.system = _told_to_rescoldo(platform.system, "Darwin")
    platform.machine = _told_to_rescoldo(platform.machine, os.environ["RESCOLDO_TEST_MACOS"])
    for module, names in (
        (os, ("sched_getaffinity", "sched_setaffinity", "O_TMPFILE", "pidfd_open", "memfd_create", "posix_fadvise")),
        (signal, ("pidfd_send_signal",)),
        (time, ("CLOCK_BOOTTIME",)),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
