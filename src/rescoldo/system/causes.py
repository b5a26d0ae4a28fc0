"""Causes of a slow step: what else happened on the machine during it."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass

import psutil

from rescoldo.invocation import program
from rescoldo.system.cgroup import available_threads, cpu_quota, throttled_seconds

OTHERS_CORES = 0.25  # minimum CPU use of other processes, in cores, to report them
STEAL_SHARE = 0.05
THROTTLED_SHARE = 0.03
SWAP_BYTES_A_SECOND = 1_000_000
MAJOR_FAULTS_A_SECOND = 50
SLOW_CLOCK = 0.75  # fraction of the fastest clock seen
LOOK_SECONDS = 0.3  # time for finding the busiest process


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment; two of them are compared. Seconds, bytes, MHz."""

    at: float
    busy: float  # CPU time of the whole machine
    own: float  # CPU time of this process
    steal: float  # CPU time that the hypervisor gave to other machines
    throttled: float
    swapped: int
    major_faults: int
    clock: float | None


def snapshot() -> Snapshot:
    """The current counters."""
    cpu, swap, frequency = psutil.cpu_times(), psutil.swap_memory(), _frequency()
    idle = cpu.idle + getattr(cpu, "iowait", 0.0)
    steal = getattr(cpu, "steal", 0.0)
    guest = getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)  # included in user time too
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Snapshot(
        time.monotonic(),
        sum(cpu) - idle - steal - guest,
        usage.ru_utime + usage.ru_stime,
        steal,
        throttled_seconds(),
        swap.sin + swap.sout,
        usage.ru_majflt,
        frequency,
    )


def _frequency() -> float | None:
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return float(found.current) if found and found.current else None


@dataclass(frozen=True)
class Cause:
    """One likely cause, and what to do about it."""

    kind: str
    what: str
    remedy: str


def causes(before: Snapshot, after: Snapshot, fastest_clock: float | None = None) -> list[Cause]:
    """Likely causes of slowness between the two snapshots, the likeliest first; [] if none is found."""
    seconds = max(1e-3, after.at - before.at)
    cores = psutil.cpu_count() or 1
    others = (after.busy - before.busy - (after.own - before.own)) / seconds
    found = []
    throttled, quota = (after.throttled - before.throttled) / seconds, cpu_quota()
    if throttled > THROTTLED_SHARE:
        worth = "" if quota is None else f" of {quota:g} cores"
        what = f"the CPU quota{worth} throttled this process ({throttled:.0%} of the time)"
        remedy = f"raise the quota; with the present one --threads {available_threads()} is fastest"
        found.append(Cause("quota", what, remedy))
    spare = 0.0 if quota is None else max(0.0, cores - quota)  # cores that this process cannot use anyway
    if others > spare + OTHERS_CORES:
        found.append(
            Cause(
                "other processes",
                f"other processes use {others:.1f} of {cores} cores{busiest()}",
                f"end them or wait for them; `{program()} train --threads N`, N below the cores, leaves some to them",
            )
        )
    if (after.steal - before.steal) / seconds > STEAL_SHARE * cores:
        share = (after.steal - before.steal) / seconds / cores
        what = f"the hypervisor gave {share:.0%} of the CPU to other virtual machines"
        found.append(Cause("steal", what, "move to a machine whose cores are your own"))
    if (after.swapped - before.swapped) / seconds > SWAP_BYTES_A_SECOND or (
        after.major_faults - before.major_faults
    ) / seconds > MAJOR_FAULTS_A_SECOND:
        remedy = "end other programs, or start over with --restart and --quantization int8 or nf4"
        found.append(Cause("swapping", "memory is short: pages are read back from the disk", remedy))
    if fastest_clock and after.clock and after.clock < SLOW_CLOCK * fastest_clock:
        what = f"the CPU's clock is at {after.clock:.0f} MHz, down from {fastest_clock:.0f} MHz"
        remedy = "it is too hot, on battery or in a power-saving mode: cool it, plug it in, check the governor"
        found.append(Cause("clock", what, remedy))
    return found


def busiest() -> str:
    """' (most of it: NAME, pid N)' for the currently busiest other process; '' if none is busy."""
    before = {process.pid: _cpu(process) for process in psutil.process_iter()}
    time.sleep(LOOK_SECONDS)
    best, name, pid = 0.1 * LOOK_SECONDS, "", 0
    for process in psutil.process_iter():
        used = _cpu(process) - before.get(process.pid, 0.0)
        if used > best and process.pid != os.getpid():
            try:
                best, name, pid = used, process.name(), process.pid
            except psutil.Error:
                continue
    return f" (most of it: {name}, pid {pid})" if pid else ""


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
