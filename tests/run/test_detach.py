"""A detached run: it survives its terminal, is followed, stopped and resumed, and its end is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rescoldo.cli.keeper import keep
from rescoldo.errors import RescoldoError
from rescoldo.files import read_json
from rescoldo.run.detach import start_detached, train_command
from rescoldo.run.layout import ERROR_FILE, EXIT_FILE, LOG_FILE
from rescoldo.run.status import read_status
from tests.run.common import environment, rescoldo, tiny_run, wait_for


@pytest.mark.slow
def test_from_start_to_finish(tmp_path):
    output = tmp_path / "out"
    # steps that take a while: other commands are tried meanwhile
    flags = ["train", *tiny_run(tmp_path, epochs=5, brief=False), f"--output={output}", "--detach"]
    told = tmp_path / "told.json"

    # a terminal that is closed: the starting process's whole session gets SIGHUP
    shell = subprocess.Popen(
        [sys.executable, "-m", "rescoldo", *flags, f"--on-exit=cat >> {told}", "--json"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started = json.loads(shell.communicate(timeout=100)[0])
    assert started["status"] == "started"
    found = wait_for(output, "running")
    assert found.pid == started["pid"]
    assert os.getsid(found.pid) not in (os.getsid(0), shell.pid)

    assert "already working" in rescoldo(tmp_path, *flags).stderr
    assert rescoldo(tmp_path, *flags).returncode == 3

    follower = subprocess.Popen(
        [sys.executable, "-m", "rescoldo", "logs", "-f", str(output)],
        env=environment(tmp_path), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(output, "running", phase="training")
    while not read_status(output).state.get("step"):
        time.sleep(0.05)
    stopped = rescoldo(tmp_path, "stop", "--json")  # no directory named: the latest run
    assert stopped.returncode == 0
    document = json.loads(stopped.stdout)
    assert (document["status"], document["stopped_now"]) == ("stopped", True)
    assert document["checkpoint"].startswith("checkpoint-")
    said = follower.communicate(timeout=30)[0]
    assert "Starting training" in said
    assert "The same command again resumes" in said
    assert json.loads(rescoldo(tmp_path, "stop", "--json").stdout)["stopped_now"] is False

    for _ in range(100):
        if told.exists() and told.read_text().endswith("\n"):
            break
        time.sleep(0.1)
    assert json.loads(told.read_text())["status"] == "stopped"

    assert rescoldo(tmp_path, *flags).returncode == 0
    found = wait_for(output, "running")
    os.kill(found.pid, signal.SIGKILL)
    found = wait_for(output, "died")
    assert found.why.startswith("killed")
    assert rescoldo(tmp_path, "status", str(output)).returncode == 1

    last = [flag for flag in flags if not flag.startswith("--on-exit")]
    assert rescoldo(tmp_path, *last).returncode == 0
    assert wait_for(output, "finished").state["phase"] == "finished"
    assert "100 %" in rescoldo(tmp_path, "list").stdout
    assert "Resuming from checkpoint-" in (output / "run.log").read_text()
    assert rescoldo(tmp_path, "logs", "-n", "1", str(output)).stdout.strip() == "✅ Fine-tuning completed!"

    restarted = rescoldo(tmp_path, *last, "--restart")
    assert restarted.returncode == 0
    aside = tmp_path / "out.old-1"
    assert (aside / "adapter_model.safetensors").exists()
    wait_for(output, "running", phase="training")
    assert "Preparing the weights" in (output / "run.log").read_text()
    assert rescoldo(tmp_path, "stop", str(output)).returncode == 0


@pytest.mark.slow
def test_what_is_wrong_is_said_at_once(tmp_path):
    flags = [*tiny_run(tmp_path), f"--output={tmp_path / 'out'}", "--detach"]
    (tmp_path / "train.jsonl").write_text("{}\n")
    done = rescoldo(tmp_path, "train", *flags)
    assert done.returncode == 2
    assert "train.jsonl:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_status(tmp_path / "out").status == "failed"
    assert "train.jsonl:1" in read_status(tmp_path / "out").why


def test_a_log_that_cannot_be_written_starts_nothing(tmp_path):
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    with pytest.raises(RescoldoError, match=r"run\.log: cannot be written: No space left on device\n  → df -h"):
        start_detached(tmp_path, train_command({}, None), "")


def test_keeper_notes_the_end_and_tells(tmp_path):
    told = tmp_path / "told.json"
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert keep(tmp_path, f"cat > {told}", [sys.executable, "-c", code]) == 128 + 9
    ended = read_json(tmp_path / EXIT_FILE)
    assert ended is not None
    assert (ended["signal"], ended["oom_kill"]) == (9, False)
    assert json.loads(told.read_text())["status"] == "died"
    assert keep(tmp_path, "", [sys.executable, "-c", "raise SystemExit(4)"]) == 4


def test_the_error_that_ended_a_run_is_kept_as_data(tmp_path):
    (tmp_path / ERROR_FILE).write_text('{"pid": 1, "what": "of an earlier run"}')
    program = "import sys; from rescoldo.cli.main import main; sys.argv = ['rescoldo', 'train', '--no-such']; main()"
    assert keep(tmp_path, "", [sys.executable, "-c", program]) == 2
    error = (read_json(tmp_path / EXIT_FILE) or {})["error"]
    assert error["what"] == "there is no option --no-such"
    assert "--help" in error["fix"] or "did you mean" in error["fix"]
    assert not (tmp_path / ERROR_FILE).exists()
    assert read_status(tmp_path).why.startswith("there is no option --no-such\n  → ")
    said = "print('error: not an error of ours'); raise SystemExit(2)"
    assert keep(tmp_path, "", [sys.executable, "-c", said]) == 2
    assert (read_json(tmp_path / EXIT_FILE) or {})["error"] is None


def test_a_command_that_fails_is_named(tmp_path, capfd):
    assert keep(tmp_path, "exit 5", [sys.executable, "-c", ""]) == 0
    assert "--on-exit 'exit 5' ended with exit code 5" in capfd.readouterr().out
