"""Checks of the machine: processor, threads, load, power, sleep, libraries."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from rescoldo.doctor.check import Check, failure, ok, warning
from rescoldo.doctor.subject import Subject
from rescoldo.engine.kernels.build import usable
from rescoldo.errors import RescoldoError
from rescoldo.extras import pip_install
from rescoldo.system import cpu as processor
from rescoldo.system.awake import awake, can_suspend
from rescoldo.system.causes import OTHERS_CORES, busiest, snapshot
from rescoldo.system.cgroup import available_threads, cpu_quota
from rescoldo.units import count

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "i8mm")
LOOK_SECONDS = 0.25
SLOW_PRECISION = 1.3  # warn if the chosen precision is this many times slower than the best that fits
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def instructions() -> list[str]:
    """Those of INSTRUCTIONS that this CPU has; [] if the system does not report them."""
    flags = processor.instructions()
    return [name for name in INSTRUCTIONS if name in flags]


def cpu(subject: Subject) -> Iterator[Check]:
    """Instruction sets, compiler, precision."""
    has = instructions()
    text = f"{processor.model()}: {', '.join(has) or 'no known vector instructions'}"
    if has and not usable(processor.instructions()):
        yield warning("cpu", text, "another machine: without AVX2 a run takes several times as long", instructions=has)
    else:
        yield ok("cpu", text, instructions=has)
    kernels = [*_kernels()]
    yield from kernels
    if not any(check.level == "failure" for check in kernels):  # products can be measured only with kernels
        yield from _precision(subject)


def _kernels() -> Iterator[Check]:
    """Which kernels are used, and which would be faster."""
    from rescoldo.engine.kernels.build import usable
    from rescoldo.engine.kernels.choose import VARIABLE, choice

    try:
        chosen = choice()
    except RescoldoError as error:
        yield failure("kernels", f"{error.where}: {error.what}", f"unset {VARIABLE}")
        return
    name = chosen.kernels.name
    fastest = [row.name for row in usable(processor.instructions(), vendor=processor.vendor())][:1]
    if "native" in chosen.passed_over:
        yield warning("kernels", f"slower kernels will be used: {chosen.passed_over['native']}", chosen.remedy)
    elif chosen.passed_over:
        why = "; ".join(f"{faster}: {reason}" for faster, reason in chosen.passed_over.items())
        what = f"{name} kernels are used; faster ones are not available: {why}"
        yield warning("kernels", what, chosen.remedy)
    elif name == "pytorch":
        yield warning("kernels", f"{VARIABLE}=torch: slower kernels will be used", f"unset {VARIABLE}")
    elif fastest != [name]:
        what = f"{VARIABLE}={name}: slower kernels will be used than {fastest[0]}, which this CPU can run"
        yield warning("kernels", what, f"unset {VARIABLE}")
    else:
        yield ok("kernels", f"{name} kernels", kernels=name)


def _precision(subject: Subject) -> Iterator[Check]:
    """Whether this CPU is fast in the chosen precision."""
    if subject.base is None:
        return
    from rescoldo.engine.auto import choose_precision, product_rates
    from rescoldo.engine.precisions import PRECISIONS

    decoder, chosen = subject.base.config, subject.config.quantization
    rates = product_rates(min(decoder.hidden_size, 4096), min(decoder.intermediate_size, 4096))
    best = choose_precision(decoder, rates, stored=subject.base.stored_bytes()).precision
    mine, theirs = (rates[PRECISIONS[name].product] for name in (chosen, best))
    figures = {"operations_per_second": rates, "best": best}
    shown = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    if theirs > SLOW_PRECISION * mine:
        what = f"{chosen} is {theirs / mine:.1f} times slower here than {best} ({shown} G operations/s)"
        yield warning("precision", what, f"--quantization {best}", **figures)
    else:
        yield ok("precision", f"{chosen} suits this CPU ({shown} G operations/s)", **figures)


def threads(subject: Subject) -> Iterator[Check]:
    """Threads compared with cores and CPU quota, and environment variables that limit them."""
    available, wanted = available_threads(), subject.config.threads or available_threads()
    quota = cpu_quota()
    within = f", a quota of {quota:g}" if quota is not None else ""
    cores = count(os.cpu_count() or 1, "core")
    text = f"{count(wanted, 'thread')} on {cores}, {available} available to this process{within}"
    if wanted > available:
        why = "the quota throttles them" if quota is not None and quota < wanted else "they would wait for each other"
        yield warning("threads", f"{text}: {why}", f"--threads {available}")
    elif quota is not None and quota < 1:
        what = f"{text}: less than one core, so a single thread waits {1 - quota:.0%} of the time"
        yield warning("threads", what, "raise the CPU quota (docker run --cpus N, systemd's CPUQuota=)")
    else:
        yield ok("threads", text, threads=wanted, available=available)
    for name in ("OMP_THREAD_LIMIT", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        value = os.environ.get(name, "").split(",")[0]
        if value.isdecimal() and int(value) < wanted:
            yield warning("threads", f"{name}={value} limits libraries to fewer threads than {wanted}", f"unset {name}")
    for name in ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES"):
        if os.environ.get(name, "false").lower() != "false":
            what = f"{name}={os.environ[name][:40]} binds threads to cores, possibly all to the same"
            yield warning("threads", what, f"unset {name}")


def load(subject: Subject) -> Iterator[Check]:
    """The share of the cores that other processes use at the moment."""
    before = snapshot()
    time.sleep(LOOK_SECONDS)
    after = snapshot()
    seconds = after.at - before.at
    others = max(0.0, (after.busy - before.busy - (after.own - before.own)) / seconds)
    cores = os.cpu_count() or 1
    text = f"other processes use {others:.1f} of {cores} cores"
    if others > max(OTHERS_CORES, 0.1 * cores):
        yield warning("load", f"{text}{busiest()}", "end them or wait for them", cores=others)
    else:
        yield ok("load", text, cores=others)


def power(subject: Subject) -> Iterator[Check]:
    """Clock governor and battery, if the system reports them."""
    try:
        governor = GOVERNOR.read_text(encoding="ascii").strip()
    except OSError:
        governor = ""
    if governor == "powersave":
        yield warning("power", "the CPU's governor is powersave", "sudo cpupower frequency-set -g performance")
    try:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    except (OSError, psutil.Error):  # a container, or a kernel, without /sys/class/power_supply
        battery = None
    if battery is not None and not battery.power_plugged:
        what = f"on battery, {battery.percent:.0f} % left: slower, and it will not last for a long run"
        yield warning("power", what, "plug it in")
    elif battery is not None or governor not in ("", "powersave"):
        shown = [f"governor {governor}"] if governor else []
        yield ok("power", ", ".join([*shown, "plugged in" if battery is not None else "no battery"]))


def sleep(subject: Subject) -> Iterator[Check]:
    """Whether the machine can go to sleep during a run."""
    if not can_suspend():
        yield ok("sleep", "this machine cannot be suspended")
        return
    with awake() as held:
        if held:
            yield ok("sleep", "the run will prevent sleep")
            return
    what = "sleep cannot be prevented on this machine (neither systemd-inhibit nor caffeinate works)"
    yield warning("sleep", what, "sudo systemctl mask sleep.target suspend.target, for the time of the run")


def libraries(subject: Subject) -> Iterator[Check]:
    """The packages that rescoldo requires, and their installed versions."""
    try:
        needed = [Requirement(line) for line in requires("rescoldo") or ()]
    except PackageNotFoundError:
        yield warning("libraries", "rescoldo itself is not installed", "pip install -e .")
        return
    wrong, shown = [], []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append((requirement, "missing"))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append((requirement, found))
        elif requirement.name in ("torch", "transformers", "tokenizers"):
            shown.append(f"{requirement.name} {found}")
    if wrong:
        what = "; ".join(f"{requirement} is needed, {found}" for requirement, found in wrong)
        install = pip_install(*(f"{requirement.name}{requirement.specifier}" for requirement, _ in wrong))
        yield failure("libraries", what, install)
    else:
        yield ok("libraries", ", ".join(shown))
