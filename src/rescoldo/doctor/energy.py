"""The energy counters of processor packages (RAPL), if the system allows reading them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@contextlib.contextmanager
def energy() -> Iterator[Callable[[], float | None]]:
    """Measures the energy used inside the block; yields a function for the joules, None if they cannot be read."""
    before = _read()
    after: dict[str, tuple[int, int]] = {}
    try:
        yield lambda: _joules(before, after)
    finally:
        after.update(_read())


def unreadable() -> str:
    """Why the energy cannot be measured, and what to do about it; "" if it can."""
    if _read():
        return ""
    counters = [folder / "energy_uj" for folder in _packages()]
    if not counters:
        return f"not readable here: this system has no counters (RAPL) in {POWERCAP}"
    try:
        counters[0].read_text(encoding="ascii")
    except PermissionError:
        return f"not readable here: only root may read {counters[0]} → sudo chmod a+r {POWERCAP}/intel-rapl:*/energy_uj"
    except OSError as error:
        return f"not readable here: {counters[0]}: {error.strerror or error}"
    return f"not readable here: {counters[0].parent} holds no readable counters"


def _packages() -> list[Path]:
    """The counters of whole packages; those of cores and memory are folders with two colons."""
    return [folder for folder in sorted(POWERCAP.glob("intel-rapl:[0-9]*")) if folder.name.count(":") == 1]


def _read() -> dict[str, tuple[int, int]]:
    """Package → (its counter, the value at which it wraps around), in microjoules."""
    found = {}
    for folder in _packages():
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
            found[folder.name] = (int((folder / "energy_uj").read_text(encoding="ascii")), most)
    return found


def _joules(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    used = [(after[name][0] - count) % (most + 1) for name, (count, most) in before.items() if name in after]
    return sum(used) / 1e6 if any(used) else None  # a virtual machine's counters may never change
