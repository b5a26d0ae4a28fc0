"""One process per output directory."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rescoldo.errors import EXIT_BUSY, RescoldoError
from rescoldo.run.lock import LOCK_FILE, RunLock, process_start, read_holder

HOLD = """
import sys, time
from pathlib import Path
from rescoldo.run.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_and_told_the_pid(tmp_path, holder):
    with pytest.raises(RescoldoError, match=f"process {holder.pid} on ") as caught, RunLock(tmp_path):
        pass
    assert caught.value.exit_code == EXIT_BUSY
    assert f"rescoldo stop {tmp_path} (it saves first)" in caught.value.fix
    found = read_holder(tmp_path)
    assert found is not None
    assert (found.pid, found.alive) == (holder.pid, True)


def test_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    found = read_holder(tmp_path)
    assert found is not None
    assert found.alive is False
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_reused_pid_is_not_mistaken(tmp_path):
    with RunLock(tmp_path):
        raw = json.loads((tmp_path / LOCK_FILE).read_text())
        (tmp_path / LOCK_FILE).write_text(json.dumps(raw | {"start": "another boot:1"}))
        found = read_holder(tmp_path)
        assert found is not None
        assert found.alive is False


def test_same_process_is_refused_too_and_can_lock_again_later(tmp_path):
    with RunLock(tmp_path), pytest.raises(RescoldoError), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        pass


NO_PID = '{"pid": %s, "start": "x", "host": "' + platform.node() + '", "since": "x"}'


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\0" * 100, NO_PID % "-4", NO_PID % "1e400"])
def test_nonsense_in_the_lock_file_does_not_matter(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    assert read_holder(tmp_path) is None
    with RunLock(tmp_path):
        assert read_holder(tmp_path) is not None


def test_without_locks_in_the_file_system_the_file_decides(tmp_path, monkeypatch):
    import fcntl

    def unsupported(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "start": "old", "host": os.uname().nodename, "since": ""}))
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with RunLock(tmp_path), pytest.raises(RescoldoError, match=f"process {os.getpid()}"), RunLock(tmp_path):
        pass


def test_output_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RescoldoError, match="cannot be written"), RunLock(Path(tmp_path / "file" / "out")):
        pass


def test_process_start():
    assert process_start(os.getpid()) == process_start(os.getpid()) is not None
    assert process_start(2**22 + 5) is None
