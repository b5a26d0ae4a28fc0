"""Limits of this process's container (control groups, versions 1 and 2), and events in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # the groups of this process
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number near 2⁶³


def memory_limit() -> int | None:
    """The tightest memory limit of the groups around this process, in bytes; None without a limit."""
    found = [_number(folder / name) for folder, name in _files("memory.max", "memory.limit_in_bytes")]
    limits = [limit for limit in found if limit is not None and limit < UNLIMITED]
    return min(limits) if limits else None


def memory_left() -> int | None:
    """Bytes left until the tightest limit, counting reclaimable page cache as free; None without a limit."""
    left = []
    for folder, name in _files("memory.max", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is None or limit >= UNLIMITED:
            continue
        used = _number(folder / ("memory.current" if name == "memory.max" else "memory.usage_in_bytes"))
        cache = _field(folder / "memory.stat", "inactive_file", "total_inactive_file")
        if used is not None:
            left.append(limit - used + cache)
    return min(left) if left else None


def oom_kills() -> int:
    """The number of OOM kills so far: in the group if it counts them, and on the machine."""
    group = [
        _field(folder / name, "oom_kill") for folder, name in _files("memory.events", "memory.oom_control") if folder
    ]
    return max([_field(Path("/proc/vmstat"), "oom_kill"), *group])


def throttled_seconds() -> float:
    """Seconds for which a CPU quota has throttled this group so far; 0 if that is not reported."""
    seconds = [0.0]
    for folder, name in _files("cpu.stat", "cpu.stat"):
        seconds += [_field(folder / name, "throttled_usec") / 1e6, _field(folder / name, "throttled_time") / 1e9]
    return max(seconds)


def available_threads() -> int:
    """The number of threads that can run at the same time in this process, by CPU affinity and CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def hold_libraries_to_quota() -> None:
    """Limit the threads of OpenMP and BLAS to the CPU quota, if there is one and the user has not set their number.
    With more threads, they would use up the quota early in each period and then all wait. Call before torch is
    imported."""
    if cpu_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(available_threads()))


def cpu_quota() -> float | None:
    """The tightest CPU quota of this process's groups, in cores; None without a quota."""
    quotas = []
    for folder, name in _files("cpu.max", "cpu.cfs_quota_us"):
        try:
            if name == "cpu.max":
                quota, period = (folder / name).read_text(encoding="ascii").split()
            else:
                quota = (folder / name).read_text(encoding="ascii")
                period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
            if quota.strip() not in ("max", "-1"):
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(quotas) if quotas else None


def _files(new: str, old: str) -> Iterator[tuple[Path, str]]:
    """(folder, file name) for each of this process's groups, up to the root, that has the file; `new` is its name in
    version 2, `old` in version 1."""
    kind = "cpu" if old.startswith("cpu") else "memory"
    try:
        lines = OWN.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            tops, name = (ROOT, ROOT / "unified"), new
        elif kind in controllers.split(","):
            tops, name = (ROOT / controllers, ROOT / kind), old
        else:
            continue
        for top in tops:
            folder = top / path.lstrip("/")
            while folder == top or top in folder.parents:
                if (folder / name).is_file():
                    yield folder, name
                if folder == top:
                    break
                folder = folder.parent


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # including the value "max"
        return None


def _field(path: Path, *names: str) -> int:
    """The value of the last of `names` in a file of "name value" lines; 0 if it is missing."""
    value = 0
    try:
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, number = line.partition(" ")
            if name in names:
                value = int(number)
    except (OSError, ValueError):
        pass
    return value
