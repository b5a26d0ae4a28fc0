"""`rescoldo train --nodes`: machines die, leave, come back, and are stopped; the curve is that of one machine."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.scaling import HOSTS, Network

from rescoldo.run.status import read_status
from tests.nodes.common import (
    Machine,
    command,
    curve,
    free_port,
    machines,
    make_folder,
    slow_disk,
    step_of,
    wait_for,
)

KILLS = int(os.environ.get("RESCOLDO_TEST_KILLS", "3"))  # 20 take three minutes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = make_folder(tmp_path_factory.mktemp("elastic"), gguf=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", slow_disk(made, 0.015))
        yield made


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    """The curve of one machine, 36 steps."""
    line = command(folder, folder / "alone", "--quantization", "fp32", "--epochs", 12)
    assert subprocess.run(line, capture_output=True, timeout=200, check=False).returncode == 0
    return curve(folder / "alone")


# 84 checkpoints of ten files and folders each: on the slow disk, more than ten seconds
LONG = ["--quantization", "fp32", "--epochs", 12, "--checkpoint-minutes", 0]


@contextmanager
def running(folder: Path, output: Path, n: int, *more: Any, nodes: str = "") -> Iterator[list[Machine]]:
    group = machines(folder, output, n, *more, nodes=nodes)
    try:
        yield group
    finally:
        for machine in group:
            machine.end()


@pytest.mark.slow
def test_workers_killed_at_random_moments(folder: Path, alone: list[float], tmp_path: Path) -> None:
    output, chance, killed, best = tmp_path / "out", random.Random(7), 0, 0
    with running(folder, output, 2, *LONG) as group:
        while killed < KILLS and group[0].process.poll() is None:
            time.sleep(chance.uniform(0, 2))  # shorter than the run: it must not end before the last one
            killed += chance.choice(group).kill_worker()
            assert step_of(output) >= best  # no checkpoint is lost
            best = step_of(output)
        codes = [machine.wait() for machine in group]
        assert codes == [0, 0], group[0].text() + group[1].text()
    assert killed >= min(KILLS, 3)
    assert curve(output) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_stopped_by_the_user_and_resumed_on_one_machine(folder: Path, alone: list[float], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with running(folder, output, 2, *LONG) as group:
        wait_for(lambda: step_of(output) > 6)
        status = read_status(output)
        assert (status.status, status.pid) == ("running", group[0].process.pid)
        second = subprocess.run(command(folder, output, *LONG), capture_output=True, text=True, check=False)
        assert second.returncode == 3, second.stderr
        group[0].process.send_signal(signal.SIGTERM)
        assert group[0].wait() == 143, group[0].text()
        assert group[1].wait() == 0, group[1].text()
        assert not group[0].workers()
    assert read_status(output).status == "stopped"
    again = subprocess.run(command(folder, output, *LONG), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Resuming from" in again.stdout
    assert curve(output) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_a_machine_leaves_and_comes_back(folder: Path, alone: list[float], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with running(folder, output, 2, *LONG) as group:
        wait_for(lambda: step_of(output) > 6)
        group[1].process.send_signal(signal.SIGINT)
        assert group[1].wait() == 130, group[1].text()
        wait_for(lambda: group[0].text().count("Resuming from") == 1)
        (worker,) = group[0].workers()
        worker.suspend()  # on a fast machine it would be done before the other is back
        follower = Machine(group[1].log, group[1].process.args)  # type: ignore[arg-type]
        group.append(follower)
        time.sleep(8)
        worker.resume()
        assert group[0].wait() == 0, group[0].text()
        assert follower.wait() == 0, follower.text()
    assert "leaves or machines join: saving" in group[0].text()
    assert curve(output) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_the_machine_that_leads_dies(folder: Path, alone: list[float], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with running(folder, output, 2, *LONG) as group:
        wait_for(lambda: step_of(output) > 6)
        orphans = group[0].workers()
        group[0].process.kill()
        wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in orphans), 10)
        wait_for(lambda: "waiting for the machine that leads" in group[1].text(), 60)
        again = Machine(group[0].log, group[0].process.args)  # type: ignore[arg-type]
        group.append(again)
        assert again.wait() == 0, again.text()
        assert group[1].wait() == 0, group[1].text()
    assert curve(output) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_a_machine_with_other_settings_stops_all_with_one_message(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with running(folder, output, 1, *LONG, nodes="2:2") as group:
        line = [*group[0].process.args, "--lr", "0.5"]  # type: ignore[misc]
        group.append(Machine(tmp_path / "other.log", line))
        for machine in group:
            assert machine.wait() == 2
            assert "has another lr than" in machine.text()
            assert machine.text().count("error:") == 1
    assert not output.exists()


def network(hosts: int) -> Network:
    """Hosts of their own, as network namespaces."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("network namespaces need root, ip and tc")
    try:
        return Network("100mbit", hosts)
    except subprocess.CalledProcessError as error:
        Network.close()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")


@contextmanager
def hosts(folder: Path, output: Path, n: int, *more: Any) -> Iterator[tuple[list[Machine], Network]]:
    """`n` machines for one run, each on a host of its own; the first one leads."""
    wires, group = network(n), []
    try:
        for i, host in enumerate(HOSTS[:n]):
            at = ["--nodes", n, "--rendezvous", "10.77.0.1:29500", "--join-seconds", 10]
            line = ["ip", "netns", "exec", host, *command(folder, output, *at, *more)]
            group.append(Machine(output.with_name(f"{output.name}-{i}.log"), line))
            if not i:
                wait_for((output / "run.lock").exists, 60)
        yield group, wires
    finally:
        for machine in group:
            machine.end()
        wires.close()


@pytest.mark.slow
def test_a_cable_is_cut(folder: Path, alone: list[float], tmp_path: Path) -> None:
    """A cut wire closes no connection."""
    output = tmp_path / "out"
    with hosts(folder, output, 2, *LONG) as (group, wires):
        wait_for(lambda: step_of(output) > 6)
        assert "2 machines in this run" in group[0].text()
        wires.cut()
        assert group[0].wait() == 0, group[0].text()
        assert "lost the others" in group[0].text()
    assert curve(output) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_four_hosts(folder: Path, tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    short = ["--quantization", "fp32"]
    assert subprocess.run(command(folder, one, *short), capture_output=True, timeout=200, check=False).returncode == 0
    output = tmp_path / "four"
    with hosts(folder, output, 4, *short) as (group, _):
        for machine in group:
            assert machine.wait() == 0, machine.text()
    assert "4 machines in this run" in group[0].text()
    assert curve(output) == pytest.approx(curve(one), rel=1e-5)


@pytest.mark.slow
def test_the_machine_that_leads_is_detached(folder: Path, alone: list[float], tmp_path: Path) -> None:
    """Its terminal has the command back at once; `status` and `stop` find it; the same commands go on."""
    output, port = tmp_path / "out", free_port()
    at = ["--nodes", "2:2", "--rendezvous", f"127.0.0.1:{port}", "--join-seconds", 5]
    follower = None
    try:
        for stop in (True, False):
            line = command(folder, output, *at, *LONG, "--detach")
            started = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
            assert started.returncode == 0, started.stderr
            assert "it keeps running when this terminal is closed" in started.stdout
            follower = Machine(tmp_path / "follower.log", command(folder, output, *at, *LONG))
            if stop:
                wait_for(lambda: step_of(output) > 6)
                status = read_status(output)
                assert status.status == "running"
                assert f"process {status.pid}" in started.stdout
                ask = [sys.executable, "-m", "rescoldo", "stop", str(output)]
                assert subprocess.run(ask, capture_output=True, timeout=60, check=False).returncode == 0
                assert follower.wait() == 0, follower.text()
                assert read_status(output).status == "stopped"
        assert follower is not None
        assert follower.wait() == 0, follower.text()
        wait_for(lambda: read_status(output).status == "finished", 60)
        wait_for((output / "exit.json").exists, 60)
    finally:
        if follower:
            follower.end()
        pid = read_status(output).pid
        if read_status(output).status == "running" and pid:
            os.kill(pid, signal.SIGKILL)
    log = (output / "run.log").read_text()
    assert "2 machines in this run" in log
    assert "Resuming from" in log
    assert curve(output) == pytest.approx(alone, rel=1e-5)
