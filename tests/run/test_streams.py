"""No output that fails may end a run: pipes whose reader leaves, terminals that are closed, full disks, no streams at
all. Real processes and real pseudo-terminals; the engine is the stand-in of tests.training.fake."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rescoldo.run.status import read_status

PRELUDE = "import sys, pathlib\nfrom rescoldo.run import streams\nlog = pathlib.Path(sys.argv[1])\n"


def python(code: str, log: Path, **how: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PRELUDE + code, str(log)], **how)  # type: ignore[call-overload,no-any-return]


def test_a_pipe_without_reader_is_replaced_by_the_log(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    log = tmp_path / "run.log"
    code = "with streams.unfailing(log):\n  for i in range(3): print('line', i)\n  print('aside', file=sys.stderr)\n"
    process = python(code + "print(streams.lost(), file=sys.stderr)", log, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0
    assert error.splitlines() == [b"aside", b"standard output: Broken pipe"]
    header, *lines = log.read_text(encoding="utf-8").splitlines()
    assert "standard output cannot be written (Broken pipe)" in header
    assert lines == ["line 0", "line 1", "line 2"]


def test_what_is_said_before_the_folder_exists_is_kept(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    log = tmp_path / "later" / "run.log"
    code = "with streams.unfailing(log):\n  print('before')\n  log.parent.mkdir()\n  print('after')\nprint('outside')\n"
    process = python(code, log, stdout=writing)
    os.close(writing)
    assert process.wait(timeout=30) == 0
    assert log.read_text(encoding="utf-8").splitlines()[1:] == ["before", "after", "outside"]


def test_a_full_disk_of_the_shells_log(tmp_path):
    with open("/dev/full", "wb") as full:
        process = python("with streams.unfailing(log): print('said')", tmp_path / "run.log", stdout=full, stderr=full)
        assert process.wait(timeout=30) == 0
    assert "No space left on device" in (tmp_path / "run.log").read_text(encoding="utf-8")


def test_nothing_is_written_where_the_log_cannot_be_either(tmp_path):
    (tmp_path / "run.log").mkdir()
    with open("/dev/full", "wb") as full:
        process = python("with streams.unfailing(log): print('said')", tmp_path / "run.log", stdout=full, stderr=full)
        assert process.wait(timeout=30) == 0


def test_streams_that_were_closed_from_the_start_take_no_other_files_place(tmp_path):
    code = (
        "streams.fill_absent()\nother = open(log.with_name('other'), 'w')\nassert other.fileno() > 2\n"
        "with streams.unfailing(log):\n  print('said')\n  print('aside', file=sys.stderr)\n"
    )
    command = 'exec "$0" "$@" >&- 2>&- <&-'
    arguments = ["sh", "-c", command, sys.executable, "-c", PRELUDE + code, str(tmp_path / "run.log")]
    assert subprocess.run(arguments, timeout=30, check=False).returncode == 0
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("---")] == ["said", "aside"]
    assert (tmp_path / "other").read_bytes() == b""


def test_a_reader_that_reads_no_more_is_left_behind(tmp_path):
    reading, writing = os.pipe()
    code = "streams.STALL_SECONDS = 0.2\nwith streams.unfailing(log):\n  for i in range(3000): print('x' * 60, i)\n"
    process = python(code, tmp_path / "run.log", stdout=writing)
    assert process.wait(timeout=30) == 0
    os.close(reading)
    os.close(writing)
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert "nobody has read it" in lines[0]
    assert lines[-1].endswith(" 2999")


def test_streams_without_a_descriptor_stay(capsys):
    from rescoldo.run.streams import unfailing

    before = sys.stdout
    with unfailing(None):
        assert sys.stdout is before
        print("said")
    assert capsys.readouterr().out == "said\n"


# --- a training: its reader leaves at each stage -----------------------------------------------------------------


def start(folder: Path, delay: float = 0.05, **how: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.training.fake", str(folder), str(folder / "out"), str(delay), "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **how)  # type: ignore[call-overload,no-any-return]


def read_until(fd: int, wanted: bytes) -> None:
    """Read until the text was seen; b"": not at all."""
    seen, until = b"", time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < until, seen
        seen += os.read(fd, 4096)


def own_terminal(slave: int) -> Callable[[], None]:
    """In the child: a session of its own whose terminal this is, as in a terminal's window."""

    def begin() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    return begin


STAGES = (b"", b"Loading tokenizer", b"Epoch 1/3", b"Evaluating", b"Saving LoRA")


def check_finished(folder: Path, code: int) -> None:
    assert code == 0
    status = read_status(folder / "out")
    assert status.status == "finished"
    text = (folder / "out" / "run.log").read_text(encoding="utf-8")
    assert "cannot be written" in text
    assert "✅ Fine-tuning completed!" in text
    assert "\x1b" not in text


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_reader_of_a_pipe_leaves(tmp_path, stage):
    reading, writing = os.pipe()
    process = start(tmp_path, stdout=writing, stderr=writing)
    os.close(writing)
    read_until(reading, stage)
    os.close(reading)
    check_finished(tmp_path, process.wait(timeout=60))


@pytest.mark.parametrize("stage", [pytest.param(one, marks=pytest.mark.slow) for one in STAGES[:2]] + [STAGES[2]])
def test_a_disowned_run_outlives_its_terminal(tmp_path, stage):
    """disown, or nohup with its output on the terminal: the terminal goes and no signal comes."""
    master, slave = pty.openpty()
    process = start(tmp_path, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    read_until(master, stage)
    os.close(master)
    check_finished(tmp_path, process.wait(timeout=60))
    what = [trouble["what"] for trouble in read_status(tmp_path / "out").state["troubles"]]
    assert any("continues without its terminal" in one and "Input/output error" in one for one in what)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[3:])
def test_a_disowned_run_outlives_its_terminal_to_the_end(tmp_path, stage):
    test_a_disowned_run_outlives_its_terminal(tmp_path, stage)


@pytest.mark.slow
def test_nohup_ignores_the_hangup_of_its_terminal(tmp_path):
    master, slave = pty.openpty()

    def begin() -> None:
        own_terminal(slave)()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(tmp_path, stdout=slave, stderr=slave, preexec_fn=begin)
    os.close(slave)
    read_until(master, b"Epoch 1/3")
    os.close(master)
    check_finished(tmp_path, process.wait(timeout=60))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [b"Epoch 1/3", b"Evaluating"])
def test_a_closed_window_is_an_interruption_and_no_failure(tmp_path, stage):
    """The terminal is gone when the answer to SIGHUP is said (a killed tmux pane, a dropped ssh session)."""
    master, slave = pty.openpty()
    process = start(tmp_path, delay=0.2, stdout=slave, stderr=slave, preexec_fn=own_terminal(slave))
    os.close(slave)
    read_until(master, stage)
    os.close(master)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    status = read_status(tmp_path / "out")
    assert (status.status, status.why) == ("stopped", "by SIGHUP, and saved")
    assert status.checkpoint
    text = (tmp_path / "out" / "run.log").read_text(encoding="utf-8")
    assert "SIGHUP: saved as checkpoint-" in text
    assert start(tmp_path, delay=0.0, stdout=subprocess.DEVNULL).wait(timeout=60) == 0


@pytest.mark.slow
def test_ctrl_c_on_a_pipeline_that_ends_in_tee(tmp_path):
    """Both get the signal; tee is gone when the run says that it has saved."""
    tee = subprocess.Popen(["tee", str(tmp_path / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert tee.stdin is not None
    assert tee.stdout is not None
    process = start(tmp_path, delay=0.2, stdout=tee.stdin, stderr=subprocess.STDOUT, start_new_session=True)
    tee.stdin.close()
    read_until(tee.stdout.fileno(), b"Starting training")
    time.sleep(0.5)
    tee.send_signal(signal.SIGINT)
    tee.wait(timeout=10)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    status = read_status(tmp_path / "out")
    assert (status.status, status.why) == ("stopped", "by SIGINT, and saved")
    assert "SIGINT: saved as" in (tmp_path / "out" / "run.log").read_text(encoding="utf-8")
