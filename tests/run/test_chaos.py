"""A detached run that is disturbed 50 times ends with the same bytes as one that was left alone.

The clock is moved for the run's own processes: a `sitecustomize` on their path shifts Python's wall clock by what a
file says (setting the machine's clock would disturb everybody else on it). The disk is a tmpfs of its own where we may
mount.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rescoldo.errors import EXIT_BUSY, RescoldoError
from rescoldo.files import read_json
from rescoldo.run.detach import start_detached, train_command
from rescoldo.run.layout import INFO_FILE, METRICS, RUN_FILE, list_checkpoints, read_timings
from rescoldo.run.signals import send_to
from rescoldo.run.status import read_status
from tests.run.common import customized, environment, rescoldo, tiny_run, wait_for

DISTURBANCES = {
    "SIGKILL": 7,
    "SIGKILL while starting": 3,
    "SIGTERM": 4,
    "SIGSTOP for a while": 10,
    "disk full": 6,
    "checkpoint damaged": 4,
    "second start": 6,
    "clock moved": 7,
    "keeper killed": 3,
}
EPOCHS = 6  # enough for all of it
SAME = ("adapter_model.safetensors", "adapter_config.json", METRICS)
CLOCK = """
import time
_time, _localtime, _strftime = time.time, time.localtime, time.strftime
def _offset():
    try:
        return float(open({path!r}).read())
    except (OSError, ValueError):
        return 0.0
time.time = lambda: _time() + _offset()
time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
time.strftime = lambda form, when=None: _strftime(form, time.localtime() if when is None else when)
"""


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    """A directory on a small file system of its own where that can be had."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    yield disk
    if mounted:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(path: Path) -> None:
    """Write to a file until the disk is full."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)


class Driver:
    """A run, and what is done to it."""

    def __init__(self, output: Path, command: list[str], clock: Path) -> None:
        self.output, self.command, self.clock = output, command, clock
        self.dice = random.Random(5)
        self.starts = 0

    def start(self) -> None:
        start_detached(self.output, self.command, "")
        self.starts += 1

    def signal(self, number: signal.Signals) -> None:
        assert send_to(self.output, number)

    def go_on(self) -> None:
        """After the process has gone: the same command again, if there is anything left to do."""
        if read_status(self.output).status != "finished":
            self.start()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        found = wait_for(self.output, "died", "finished")
        if found.status == "died":
            assert found.why.startswith("killed")
            assert not found.killed_for_memory

    def disturb(self, kind: str) -> bool:
        """Do it; False if it cannot be done now."""
        dice, output = self.dice, self.output
        if kind == "SIGKILL":
            self.kill()
            self.go_on()
        elif kind == "SIGKILL while starting":
            self.kill()
            self.starts += 1
            keeper = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for(output, "starting", "running", "finished")
            keeper.kill()
            keeper.wait()
            self.go_on()
        elif kind == "SIGTERM":
            self.signal(signal.SIGTERM)
            found = wait_for(output, "stopped", "finished")
            assert found.status == "finished" or "SIGTERM" in found.why
            self.go_on()
        elif kind == "SIGSTOP for a while":
            self.signal(signal.SIGSTOP)
            time.sleep(dice.choice([0.05, 0.2, 0.5]))
            assert read_status(output).status == "running"
            self.signal(signal.SIGCONT)
        elif kind == "disk full":
            filler = output.parent / "filler"
            if not os.path.ismount(output.parent):
                return False
            fill(filler)
            time.sleep(dice.uniform(0.1, 0.6))
            filler.unlink()
        elif kind == "checkpoint damaged":
            self.signal(signal.SIGSTOP)
            found = list_checkpoints(output)
            if len(found) < 2:
                self.signal(signal.SIGCONT)
                return False
            victim = dice.choice([path for path in sorted(found[0].iterdir()) if path.stat().st_size])
            data = bytearray(victim.read_bytes())
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            victim.write_bytes(data if dice.random() < 0.5 else data[: len(data) // 2])
            self.kill()
            self.go_on()
        elif kind == "second start":
            with pytest.raises(RescoldoError, match="already working") as refused:
                start_detached(output, self.command, "")
            assert refused.value.exit_code == EXIT_BUSY
        elif kind == "clock moved":
            self.clock.write_text(str(dice.choice([-1, 1]) * dice.choice([3600, 86400, 1e7])))
        elif kind == "keeper killed":
            parent = psutil.Process(read_status(output).pid).parent()
            if parent is None or "rescoldo.cli.keeper" not in parent.cmdline():
                return False  # it has been killed before, and the run continues without
            parent.kill()
        return True


@pytest.mark.slow
def test_fifty_disturbances(tmp_path, place, monkeypatch):
    flags = tiny_run(tmp_path, epochs=EPOCHS, gguf=True, brief=False)  # steps that take a while
    calm, output, clock = tmp_path / "calm", place / "stormy", tmp_path / "offset"
    undisturbed = subprocess.Popen(
        [sys.executable, "-m", "rescoldo", "train", *flags, f"--output={calm}"],
        env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    own = environment(tmp_path) | {"PYTHONPATH": customized(tmp_path, CLOCK.format(path=str(clock)))}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    given = dict(flag.removeprefix("--").split("=", 1) for flag in [*flags, f"--output={output}"])
    driver = Driver(output, train_command({**given, "checkpoint-minutes": 0}, None), clock)

    kinds = [kind for kind, count in DISTURBANCES.items() for _ in range(count)]
    if not os.path.ismount(place):  # without a disk of our own: other disturbances in its place
        kinds = ["SIGSTOP for a while" if kind == "disk full" else kind for kind in kinds]
    driver.dice.shuffle(kinds)
    done: Counter[str] = Counter()
    driver.start()
    started = read_json(output / RUN_FILE)
    kinds.reverse()
    began = time.monotonic()
    while kinds:
        found = wait_for(output, "running", "finished")
        assert found.status != "finished", f"finished after {sum(done.values())} disturbances: the run is too short"
        until = time.monotonic() + driver.dice.uniform(0.0, 0.5)  # a run that is behind gets time to work
        while found.state["share"] < 0.4 * sum(done.values()) / 50 and time.monotonic() < until:
            time.sleep(0.05)
            found = read_status(output)
        kind = kinds.pop()
        print(f"{time.monotonic() - began:6.1f} s, {found.state['share']:4.0%}: {kind}", flush=True)
        if driver.disturb(kind):
            done[kind] += 1
        else:
            kinds.insert(0, kind if kind != "keeper killed" else "SIGSTOP for a while")
    clock.write_text("0")
    for _ in range(5):  # a run that was killed as it ended
        if wait_for(output, "finished", "died", "stopped", seconds=120).status == "finished":
            break
        driver.start()

    print(f"\n{sum(done.values())} disturbances, {driver.starts} starts: {dict(done)}")
    assert sum(done.values()) == 50
    assert undisturbed.wait(120) == 0
    assert {name: (output / name).read_bytes() for name in SAME} == {name: (calm / name).read_bytes() for name in SAME}
    now = read_json(output / RUN_FILE)
    assert started is not None
    assert now is not None
    for part in ("format", "config", "from_preset", "identity"):  # `started` is new where no checkpoint was there yet
        assert now[part] == started[part]
    info = read_json(output / INFO_FILE)
    assert info is not None
    assert len(info["resumptions"]) < driver.starts
    assert read_status(output).state["phase"] == "finished"
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    assert len(list(output.glob("damaged-checkpoint-*"))) <= DISTURBANCES["checkpoint damaged"]
    assert all(line["t"] >= 0 for line in read_timings(output))
    assert json.loads(rescoldo(tmp_path, "verify", str(output), "--json").stdout)["ok"]
