"""Trouble is named while it happens: slow steps, stops, sleep, memory."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rescoldo.engine.step import GradientStep
from rescoldo.run import monitor
from rescoldo.run.guard import MemoryGuard, cap_after_kill
from rescoldo.run.layout import read_timings
from rescoldo.run.monitor import Monitor
from rescoldo.run.signals import EndedBySignal
from rescoldo.run.state import read_state
from rescoldo.system import causes as looking
from rescoldo.system import clock as clocks
from rescoldo.system.awake import awake
from rescoldo.system.causes import causes, snapshot
from rescoldo.system.cgroup import cpu_quota, memory_left, memory_limit, oom_kills, throttled_seconds
from rescoldo.system.clock import WorkClock
from rescoldo.system.memory import memory_available, memory_total, own_memory
from rescoldo.training.loop import bound_memory
from rescoldo.training.start import train
from tests.engine.common import example, tiny_lora
from tests.run.test_status import leave
from tests.training.fake import PARTS, Silent, config
from tests.training.test_resume import counting_parts


class Ears:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def watcher(tmp_path):
    return Monitor(tmp_path, Ears())


def test_a_signal_while_it_starts_is_in_the_state(watcher, monkeypatch, tmp_path):
    def start() -> None:
        raise EndedBySignal(signal.SIGTERM)

    monkeypatch.setattr(watcher._thread, "start", start)
    with pytest.raises(EndedBySignal):
        watcher.__enter__()
    state = read_state(tmp_path)
    assert state is not None
    assert (state.phase, state.signal) == ("stopped", signal.SIGTERM)


def test_figures_of_the_system_are_there():
    assert memory_available() <= memory_total()
    assert 1_000_000 < own_memory() < memory_total()
    assert oom_kills() >= 0
    assert throttled_seconds() >= 0
    assert memory_limit() is None or memory_limit() > 0
    assert memory_left() is None or memory_left() > 0
    assert cpu_quota() is None or cpu_quota() > 0


def test_own_memory_counts_what_is_taken():
    before = own_memory()
    with mmap.mmap(-1, 200_000_000) as block:  # fresh pages: an allocator may have some left that count already
        block.write(b"1" * 200_000_000)
        assert own_memory() - before > 150_000_000


# slow steps


def test_a_slow_step_is_named_with_its_cause(watcher, monkeypatch):
    quiet = looking.Snapshot(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 3000.0)
    later = replace(quiet, at=10.0, busy=15.0, own=5.0, throttled=2.0, clock=1500.0, swapped=10**9)
    snapshots = iter([quiet] * 5 + [later])
    monkeypatch.setattr(monitor, "snapshot", lambda: next(snapshots))
    for step in range(1, 6):
        watcher.step_done(step, 1000, 1.0)
    assert watcher._listener.said == []
    watcher.step_done(6, 1000, 10.0)
    (said,) = watcher._listener.said
    assert "step 6 took 10.0 s, 10.0 times as long as expected" in said
    for cause in ("other processes use 1.0 of", "quota throttled this process", "read back from the disk", "1500 MHz"):
        assert cause in said
    assert "→ raise the quota" in said
    assert "step 6" in read_state(watcher.file.path.parent).troubles[0]["what"]


def test_slower_than_the_plan_from_the_first_steps_on(tmp_path, monkeypatch):
    watcher = Monitor(tmp_path, Ears(), expected_rate=1000.0)
    for step in (1, 2):
        watcher.step_done(step, 100, 1.0)
    (said,) = watcher._listener.said
    assert "10.0 times as long" in said


def test_the_same_trouble_is_not_said_at_each_step(watcher):
    for _ in range(3):
        watcher.say("slow", "it is slow", "wait")
    assert len(watcher._listener.said) == 1


def test_a_busy_process_is_found():
    before = snapshot()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.0)
        found = {cause.kind: cause.what for cause in causes(before, snapshot())}
        assert "other processes" in found
    finally:
        other.kill()
        other.wait()


# time


def test_a_stop_does_not_count(tmp_path):
    """A real SIGSTOP of a real process with a monitor."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rescoldo.system import clock\n"
        "clock.STOPPED_AFTER = 1.0\n"
        "from rescoldo.run.monitor import Monitor\n"
        "class Ears:\n"
        "    def warn(self, text): print(text, flush=True)\n"
        "with Monitor(Path(sys.argv[1]), Ears()) as m:\n"
        "    began, wall = m.clock.now(), time.monotonic()\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    time.sleep(1.0)\n"
        "    print(time.monotonic() - wall - (m.clock.now() - began), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdin
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.6)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate("\n", timeout=60)
    lines = out.splitlines()
    assert 2.0 < float(lines[-1]) < 5.0
    assert "this process was stopped for 0:00:0" in lines[0]
    found = read_state(tmp_path)
    assert found is not None
    assert found.stopped_seconds > 2.0


def test_a_suspend_is_noticed(watcher, monkeypatch):
    asleep = 100.0
    monkeypatch.setattr(clocks, "asleep_seconds", lambda: asleep)
    watcher.clock = WorkClock()
    events = []
    watcher._event = lambda name, **values: events.append((name, values))
    began = watcher.clock.now()
    asleep += 3600.0
    watcher.look()
    assert events == [("suspended", {"seconds": 3600.0})]
    assert "the machine slept for 1:00:00" in watcher._listener.said[0]
    assert watcher.clock.now() - began < 60.0


def test_a_suspend_spoils_neither_speed_nor_time_left(tmp_path, monkeypatch):
    """The clocks as the kernel moves them: an hour passes on CLOCK_BOOTTIME, and none on CLOCK_MONOTONIC."""
    real, asleep, work = time.clock_gettime, 0.0, 0

    def gettime(which):
        return real(which) + (asleep if which == time.CLOCK_BOOTTIME else 0.0)

    def act(kind):
        nonlocal asleep, work
        work += kind == "micro-batch"
        if kind == "micro-batch" and work == 8:
            asleep = 3600.0
            time.sleep(3 * monitor.TICK_SECONDS)  # one look at the clocks at least
        time.sleep(0.01)

    monkeypatch.setattr(time, "clock_gettime", gettime)
    run = config(tmp_path, tmp_path / "out")
    reporter = Silent()
    train(run, parts=counting_parts(act), reporter=reporter)
    assert work > 8
    assert reporter.text.count("the machine slept for 1:00:00; this does not count") == 1
    state = read_state(tmp_path / "out")
    assert state is not None
    assert 3599 < state.suspended_seconds < 3601
    lines = read_timings(tmp_path / "out")
    assert [line["seconds"] for line in lines if line["event"] == "suspended"] == [3600.0]
    steps = [line for line in lines if line["event"] == "step"]
    assert all(line["seconds"] < 10 for line in steps)
    usual = sorted(line["tokens_per_second"] for line in steps)[len(steps) // 2]
    assert state.tokens_per_second > usual / 100  # the pause here costs some, an hour would cost thousands
    assert all(line["t"] < 60 for line in lines)


@pytest.mark.alone
def test_long_work_is_no_stop():
    clock = WorkClock()
    began = clock.now()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    clock._last -= 6.0  # as if six seconds had gone by since the last look …
    clock._cpu -= 5.9  # … nearly all of it in computing
    assert clock.now() - began >= 0.3
    assert clock.stopped == 0.0


def test_sleep_is_held_off_while_the_block_lasts(tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    program = tmp_path / "systemd-inhibit"
    program.write_text(f"#!/bin/sh\necho $* > {marker}\n/bin/cat\n/bin/rm {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with awake() as held:
        assert held
        assert "--what=sleep" in marker.read_text()
    program.write_text("#!/bin/sh\nexit 1\n")
    with awake() as held:
        assert not held


def test_the_inhibitor_ends_with_a_killed_run(tmp_path):
    program = tmp_path / "systemd-inhibit"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/on\n/bin/cat\ntouch {tmp_path}/off\n")
    program.chmod(0o755)
    code = (
        "import time\nfrom rescoldo.system.awake import awake\n"
        "with awake():\n    print(1, flush=True)\n    time.sleep(60)"
    )
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=path)
    assert process.stdout
    process.stdout.readline()
    process.kill()
    process.wait()
    for _ in range(100):
        if (tmp_path / "off").exists():
            break
        time.sleep(0.05)
    assert (tmp_path / "off").exists()


# memory


@pytest.mark.alone
def test_low_memory_halves_what_is_kept_and_changes_no_bit(tmp_path, monkeypatch):
    watcher = Monitor(tmp_path, Ears())
    model = tiny_lora("llama", num_hidden_layers=4)
    examples = [example(20, 20, seed=1)]

    def gradient():
        bound_memory(watcher.guard, model, 40)
        step = GradientStep(model, examples, step=0, seed=1)
        step.micro_batch([0])
        return step.finish()

    before = gradient()
    assert model.keep_layers is None  # no bound: the engine looks at what is free
    monkeypatch.setattr(monitor, "memory_available", lambda: 1000)
    watcher.look()
    watcher.look()  # once a pass
    assert watcher.guard.cap == 2
    assert len(watcher._listener.said) == 1
    assert "kept for 2 layers instead of 4" in watcher._listener.said[0]
    after = gradient()
    assert model.keep_layers == 2
    assert all(torch.equal(before[name], after[name]) for name in before)
    for _ in range(3):
        watcher.look()
        gradient()
    assert watcher.guard.cap == 0
    assert "kept for as few layers as possible" in watcher._listener.said[-1]
    assert read_state(tmp_path).keep_layers == 0


def test_the_guard_takes_no_more_than_fits(monkeypatch):
    model = tiny_lora("llama", num_hidden_layers=4)
    guard = MemoryGuard(cap=3)
    bound_memory(guard, model, 40)
    assert model.keep_layers == 3
    monkeypatch.setattr("rescoldo.engine.memory.memory_available", lambda: 0)
    bound_memory(guard, model, 40)
    assert model.keep_layers == 0
    assert [cap_after_kill(None, 30), cap_after_kill(15, 30), cap_after_kill(1, 30)] == [15, 7, 0]


def test_a_run_that_was_killed_for_memory_says_so_and_starts_with_less(tmp_path, monkeypatch):
    from rescoldo.run import death

    output = tmp_path / "out"
    output.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    from rescoldo.run.lock import process_start

    pid, start = gone.pid, process_start(gone.pid)
    gone.kill()
    gone.wait()
    leave(output, pid, start, oom_kills=3, keep_layers=None)
    monkeypatch.setattr(death, "oom_kills", lambda: 4)
    reporter = Silent()
    train(config(tmp_path, output), parts=PARTS, reporter=reporter)
    assert "killed for memory by the kernel: this one keeps activations for at most 1 of 2 layers" in reporter.text


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a control group")
def test_killed_by_the_real_kernel(tmp_path):
    """A keeper's child that outgrows a control group of its own: exit.json says that it was for memory."""
    import json

    new, old = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    parent, name = (old, "memory.limit_in_bytes") if old.is_dir() else (new, "memory.max")
    group = parent / f"rescoldo-oom-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(120_000_000))
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        eat = f"exec {sys.executable} -c 'x = bytearray(400_000_000); x[::4096] = x[::4096]'"
        inside = f"echo $$ > {group}/cgroup.procs && {eat}"
        keeper = [sys.executable, "-m", "rescoldo.cli.keeper", str(tmp_path), "", "sh", "-c", inside]
        subprocess.run(keeper, check=False, timeout=60)
        ended = json.loads((tmp_path / "exit.json").read_text())
        assert (ended["signal"], ended["oom_kill"]) == (9, True)
    finally:
        group.rmdir()
