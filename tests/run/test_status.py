"""What is said about runs that were never, start, run, stopped, finished, failed, and died; all without torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rescoldo.invocation import program
from rescoldo.report.run_page import render
from rescoldo.run import death, registry
from rescoldo.run.layout import EXIT_FILE, INFO_FILE, RUN_FILE, STATE_FILE
from rescoldo.run.lock import LOCK_FILE, RunLock, process_start
from rescoldo.run.signals import send_to
from rescoldo.run.state import State, StateFile, read_state
from rescoldo.run.status import read_status
from rescoldo.training.start import train
from tests.run.common import environment, rescoldo
from tests.training.fake import PARTS, Silent, config


@pytest.fixture
def output(tmp_path):
    """A directory in which a run has been started."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / RUN_FILE).write_text(json.dumps({"config": {"base_model": "sample:smollm2"}, "started": "today"}))
    return folder


@pytest.fixture
def dead():
    """(pid, start) of a process that was killed."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    start = process_start(process.pid)
    process.kill()
    process.wait()
    return process.pid, start


def leave(output: Path, pid: int, start: str | None, **state) -> None:
    """Write the lock file and state that a process leaves when it is killed."""
    host = platform.node()
    lock = {"pid": pid, "start": start, "host": host, "since": "then"}
    (output / LOCK_FILE).write_text(json.dumps(lock))
    values = {"pid": pid, "start": start, "host": host, "phase": "training", "oom_kills": 10**6, **state}
    (output / STATE_FILE).write_text(json.dumps(values))


def test_never_was(tmp_path):
    assert read_status(tmp_path / "nowhere").status == "never"
    assert read_status(tmp_path).status == "never"
    done = rescoldo(tmp_path, "status", str(tmp_path))
    assert done.returncode == 2
    assert "no run has been started here" in done.stderr
    done = rescoldo(tmp_path, "status", str(tmp_path), "--json")
    assert json.loads(done.stdout)["what"] == "no run has been started here"
    (tmp_path / "file").touch()
    assert "is a file, not a directory" in rescoldo(tmp_path, "status", str(tmp_path / "file")).stderr


def test_starting_and_running(output):
    with RunLock(output):
        assert read_status(output).status == "starting"
        StateFile(output).update(now=True, phase="training", step=3)
        found = read_status(output)
        assert (found.status, found.pid, found.state["step"]) == ("running", os.getpid(), 3)


def test_the_state_of_an_earlier_process_is_not_taken_for_the_new_one(output, dead):
    leave(output, *dead)
    with RunLock(output):
        assert read_status(output).status == "starting"


def test_killed_in_the_foreground(output, dead):
    leave(output, *dead)
    found = read_status(output)
    assert found.status == "died"
    assert "SIGKILL, or a crash" in found.why
    assert not found.killed_for_memory


def test_killed_for_memory_by_the_kernels_count(output, dead, monkeypatch):
    leave(output, *dead, oom_kills=4)
    monkeypatch.setattr(death, "oom_kills", lambda: 5)
    found = read_status(output)
    assert (found.status, found.killed_for_memory) == ("died", True)
    assert found.why == "killed for memory by the kernel"
    assert "with less memory" in found.next


@pytest.mark.parametrize(
    ("ended", "why", "memory"),
    [
        ({"returncode": -9, "signal": 9, "oom_kill": True}, "killed for memory by the kernel", True),
        ({"returncode": -9, "signal": 9, "oom_kill": False}, "killed (SIGKILL: kill -9 or a supervisor)", False),
        ({"returncode": -11, "signal": 11, "oom_kill": False}, "ended by SIGSEGV, a crash in native code", False),
        ({"returncode": -7, "signal": 7, "oom_kill": False}, "SIGBUS", False),
        ({"returncode": -64, "signal": 64, "oom_kill": False}, "ended by SIGRTMAX", False),
        ({"returncode": 0, "signal": 0, "oom_kill": False}, "ended with exit code 0", False),
    ],
)
def test_what_the_keeper_saw(output, dead, ended, why, memory):
    leave(output, *dead)
    (output / EXIT_FILE).write_text(json.dumps({"pid": dead[0], "start": dead[1], "time": time.time(), **ended}))
    found = read_status(output)
    assert (found.status, found.killed_for_memory) == ("died", memory)
    assert why in found.why


def test_what_the_keeper_saw_of_an_earlier_process_does_not_count(output, dead):
    leave(output, *dead, updated=2000.0)
    (output / LOCK_FILE).unlink()
    ended = {"pid": 1, "start": "x", "time": 1000.0, "returncode": -9, "signal": 9, "oom_kill": True}
    (output / EXIT_FILE).write_text(json.dumps(ended))
    assert not read_status(output).killed_for_memory
    ended["time"] = 3000.0
    (output / EXIT_FILE).write_text(json.dumps(ended))
    assert read_status(output).pid == 1


def test_the_machine_was_restarted(output):
    leave(output, 4242, "0b5ab1d6-0000-0000-0000-000000000000:1234")
    assert "the machine was restarted" in read_status(output).why


def test_another_host(output):
    leave(output, os.getpid(), process_start(os.getpid()))
    lock = json.loads((output / LOCK_FILE).read_text()) | {"host": "elsewhere"}
    (output / LOCK_FILE).write_text(json.dumps(lock))
    found = read_status(output)
    assert found.status == "unknown"
    assert "elsewhere" in found.why
    assert not send_to(output, signal.SIGTERM)


def test_failed_says_why(output, dead):
    leave(output, *dead, phase="failed", error="the loss is not a finite number")
    (output / LOCK_FILE).unlink()
    found = read_status(output)
    assert (found.status, found.why) == ("failed", "the loss is not a finite number")


def test_failed_before_it_wrote_anything(output, dead):
    (output / "run.log").write_text("FASE 8.4\nerror: an error of an earlier run\n")
    error = {"pid": dead[0], "what": "nothing in it", "where": "--train", "fix": "fill it"}
    ended = {"pid": dead[0], "start": dead[1], "time": 1.0, "returncode": 2, "signal": 0, "oom_kill": False}
    (output / EXIT_FILE).write_text(json.dumps({**ended, "error": error}))
    found = read_status(output)
    assert (found.status, found.why) == ("failed", "--train: nothing in it\n  → fill it")
    for nothing in (None, "x", {}, {**error, "what": 3}):
        (output / EXIT_FILE).write_text(json.dumps({**ended, "error": nothing}))
        assert read_status(output).why == "exit code 2"


def test_stopped_and_finished(output, dead):
    leave(output, *dead, phase="stopped", signal=15)
    (output / LOCK_FILE).unlink()
    found = read_status(output)
    assert (found.status, found.why) == ("stopped", "by SIGTERM")
    (output / INFO_FILE).write_text('{"identity": {}}')
    assert read_status(output).status == "finished"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": "x"}', '{"pid": 1, "start": [], "troubles": 3}', "\0"])
def test_nonsense_in_the_files_is_no_error(output, content):
    for name in (STATE_FILE, EXIT_FILE, LOCK_FILE, INFO_FILE):
        (output / name).write_text(content)
    assert read_state(output) is None
    assert read_status(output).status == "died"
    assert rescoldo(output, "status", str(output)).returncode == 1


def test_nonsense_in_single_values_is_left_out(tmp_path, output, dead):
    wrong = {"loss": float("inf"), "seconds_left": 1e300, "steps": 3.5, "share": float("nan")}
    troubles = [{"time": "x", "what": "a", "remedy": "b"}, {"time": 1e300}, {}, 4]
    leave(output, *dead, **wrong, troubles=troubles)
    state = read_state(output)
    assert (state.loss, state.seconds_left, state.steps, state.share, state.troubles) == (None, None, 0, 0.0, [])
    for command in ("status", "watch"):
        done = rescoldo(tmp_path, command, str(output))
        assert "died" in done.stdout, done.stderr
    (output / EXIT_FILE).write_text(json.dumps({"pid": dead[0], "start": dead[1], "signal": "x", "returncode": 0}))
    assert read_status(output).why == "ended with exit code 0"
    leave(output, 10**300, dead[1])
    assert read_state(output) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_files_of_another_user_are_no_run_that_never_was(tmp_path, output):
    mine = tmp_path / "mine"
    shutil.copytree(output, mine)
    (output / RUN_FILE).chmod(0)
    os.chown(output / RUN_FILE, 12345, 12345)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / RUN_FILE).write_text("{}")
    secret.chmod(0o700)
    os.chown(secret, 12345, 12345)

    def as_anyone(*arguments: object) -> subprocess.CompletedProcess[str]:
        """Root without the capabilities to read and write what is not its own."""
        code = (
            "import ctypes, os, sys; libc = ctypes.CDLL(None)\n"
            "for capability in range(4): libc.prctl(24, capability, 0, 0, 0)\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'rescoldo', *sys.argv[1:]])"
        )
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)

    done = as_anyone("status", output)
    assert (done.returncode, "run.json: cannot be read: Permission denied" in done.stderr) == (2, True)
    found = json.loads(as_anyone("list", tmp_path, "--json").stdout)["runs"]
    assert [run["output"] for run in found] == [str(mine)]


def test_a_folder_that_is_not_there_has_no_list(tmp_path):
    done = rescoldo(tmp_path, "list", str(tmp_path / "nowhere"))
    assert (done.returncode, "there is no such folder" in done.stderr) == (2, True)


def test_state_goes_through_the_file(tmp_path):
    file = StateFile(tmp_path)
    file.update(now=True, phase="training", loss=1.5, seconds_left=None, tokens_per_second=3.25)
    file.trouble("slow", "wait")
    found = read_state(tmp_path)
    assert isinstance(found, State)
    assert (found.phase, found.loss, found.seconds_left, found.tokens_per_second) == ("training", 1.5, None, 3.25)
    assert found.troubles[0]["what"] == "slow"


@pytest.mark.alone
def test_status_is_quick_and_needs_no_torch(tmp_path, output, dead):
    """The best of five calls, as the machine may be busy, the interpreter's start included; and what it imports."""
    leave(output, *dead)
    code = (
        "import sys; sys.argv = ['rescoldo', 'status', sys.argv[1], '--json']\n"
        "from rescoldo.cli.main import app, run_app; run_app(app)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(output)], check=True, stdout=subprocess.DEVNULL)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        done = rescoldo(tmp_path, "status", str(output), "--json")
        seconds.append(time.perf_counter() - began)
        assert json.loads(done.stdout)["status"] == "died"
    assert min(seconds) < 0.5


def test_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert registry.known_runs() == []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        registry.register(tmp_path / name)
        time.sleep(0.01)
    registry.register(tmp_path / "gone")
    assert registry.known_runs() == [tmp_path / "two", tmp_path / "one"]
    (tmp_path / "two" / RUN_FILE).write_text("{}")
    assert registry.find_runs([tmp_path]) == [tmp_path / "two"]


def test_list_shows_each_run_once(tmp_path, output, dead):
    leave(output, *dead)
    found = json.loads(rescoldo(tmp_path, "list", str(tmp_path), str(output), "--json").stdout)["runs"]
    assert [run["output"] for run in found] == [str(output)]
    assert "died" in rescoldo(tmp_path, "list", str(tmp_path)).stdout


def test_a_signal_while_the_run_makes_ready_is_a_stop(tmp_path, monkeypatch):
    """It came before the first weight was loaded: while sleep was being held off."""

    @contextmanager
    def stay_awake():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        yield True

    result = train(config(tmp_path, tmp_path / "out"), parts=replace(PARTS, stay_awake=stay_awake), reporter=Silent())
    assert (result.status, result.signal) == ("interrupted", signal.SIGTERM)
    found = read_status(tmp_path / "out")
    assert (found.status, found.why) == ("stopped", "by SIGTERM")
    assert train(config(tmp_path, tmp_path / "out"), parts=PARTS, reporter=Silent()).status == "finished"


def test_a_signal_before_the_data_are_read_is_a_stop_too(tmp_path, output, dead):
    def read_dataset(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    for place in (output, tmp_path / "new"):
        parts = replace(PARTS, read_dataset=read_dataset)
        result = train(config(tmp_path, place), parts=parts, reporter=Silent())
        assert (result.status, result.signal) == ("interrupted", signal.SIGTERM)
        assert not (place / LOCK_FILE).exists()
    # and what a detached run's keeper saw of it
    ended = {"pid": dead[0], "start": dead[1], "returncode": 143, "signal": 0, "time": time.time()}
    (output / EXIT_FILE).write_text(json.dumps(ended))
    assert (read_status(output).status, read_status(output).why) == ("stopped", "by SIGTERM")


def test_a_plain_encoding_and_a_full_disk_are_no_traceback(tmp_path, output, dead):
    leave(output, *dead)
    here = {**environment(tmp_path), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "rescoldo", "status", str(output)]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "died" in done.stdout
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=here, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_printed_commands_can_be_pasted(tmp_path, dead):
    output = tmp_path / "mi año de prueba"
    output.mkdir()
    (output / RUN_FILE).write_text(json.dumps({"started": "today"}))
    assert f"rescoldo status '{output}'" in rescoldo(tmp_path, "logs", str(output)).stderr
    with RunLock(output):
        assert f"rescoldo status &#39;{output}&#39;" in render(output)
    (output / EXIT_FILE).write_text(json.dumps({"pid": dead[0], "start": dead[1], "returncode": 2, "time": 1}))
    assert read_status(output).next == f"{program()} logs '{output}'"
    (output / INFO_FILE).write_text(json.dumps({"identity": {}}))
    assert read_status(output).next == f"{program()} verify '{output}'"


def test_a_stopped_process_is_paused_and_can_be_ended(tmp_path, output):
    code = (
        "import signal, sys, time, pathlib\nfrom rescoldo.run.lock import RunLock\n"
        "with RunLock(pathlib.Path(sys.argv[1])):\n"
        "  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n  print('ready', flush=True)\n  time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        found = read_status(output)
        assert (found.status, found.alive) == ("paused", True)
        assert f"kill -CONT {process.pid}" in found.next
        assert send_to(output, signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_page_that_shows_a_dead_run_as_running_is_written_anew(tmp_path, output, dead):
    from rescoldo.cli.status import renew_report

    page = output / "report.html"
    leave(output, *dead)
    page.write_text('<span class="state running">running</span>', encoding="utf-8")
    assert read_status(output).status == "died"
    renew_report(read_status(output))
    assert 'class="state died"' in page.read_text(encoding="utf-8")
    written = page.stat().st_mtime_ns
    renew_report(read_status(output))
    assert page.stat().st_mtime_ns == written
