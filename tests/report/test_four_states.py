"""status, watch and report of a run that was killed, that finished, that is starting, that never was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.report.run_page import render
from rescoldo.run.layout import RUN_FILE
from rescoldo.run.lock import RunLock
from tests.report.test_run_page import broken_off, finished, no_tensorboard  # noqa: F401
from tests.run.test_status import dead, leave  # noqa: F401

Look = Callable[[str], tuple[int, str]]


@pytest.fixture(params=["killed", "finished", "starting", "never"])
def run(request, tmp_path) -> Iterator[tuple[str, Path]]:
    """(what became of it, its directory)."""
    kind, output = request.param, tmp_path / "out"
    with ExitStack() as stack:
        if kind == "finished":
            output = request.getfixturevalue("finished")
        elif kind == "killed":
            broken_off(tmp_path, output)
            leave(output, *request.getfixturevalue("dead"), epoch=2, epochs=3, step=5, steps=12, loss=1.25)
        elif kind == "starting":
            stack.enter_context(RunLock(output))
            (output / RUN_FILE).write_text('{"config": {"base_model": "sample:smollm2"}, "started": "today"}')
        yield kind, output


@pytest.fixture
def look(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Runs a command; its exit code and what it says."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["rescoldo", *words])
        monkeypatch.setenv("COLUMNS", "80")
        code = run_app(app)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_status(run, look):
    kind, output = run
    code, said = look("status", str(output))
    assert code == {"killed": 1, "finished": 0, "starting": 0, "never": 2}[kind]
    assert {
        "killed": "❌ died",
        "finished": "✅ finished",
        "starting": f"▶ starting (process {os.getpid()})",
        "never": "no such directory",
    }[kind] in said
    if kind == "killed":
        assert "SIGKILL" in said
        assert "step 5 of 12, loss 1.2500" in said
        assert "the same train command again resumes it" in said


def test_watch(run, look):
    kind, output = run
    code, said = look("watch", str(output), "--once")
    assert code == (2 if kind == "never" else 0)
    word = {"killed": "died", "finished": "finished", "starting": "starting", "never": "no such directory"}[kind]
    assert word in said
    assert ("loss by step" in said) == (kind != "never")
    assert ("(no loss yet)" in said) == (kind == "starting")
    if kind != "never":
        assert max(map(len, said.splitlines())) <= 80


def test_report(run):
    kind, output = run
    page = render(output)
    word = {"killed": "died", "finished": "finished", "starting": "starting", "never": "never"}[kind]
    assert f'<span class="state {word}">{word}</span>' in page
    assert ("SIGKILL" in page) == (kind == "killed")
    assert ("No optimizer step is done yet." in page) == (kind in ("starting", "never"))
    assert ("adapter_model.safetensors" in page) == (kind == "finished")
