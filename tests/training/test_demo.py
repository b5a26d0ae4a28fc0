"""The demo's own part: a run left by another version, and the list of runs. The engine is the stand-in."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest

from rescoldo.run.registry import known_runs
from rescoldo.training import start
from tests.training.fake import PARTS, Silent, config


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """scripts/demo.py with its run in tmp_path."""
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parents[2] / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = config(tmp_path, tmp_path / "run")
    for name, value in (("TRAIN", settings.train), ("VAL", settings.val), ("RUN", settings.output)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    train = partial(start.train, parts=PARTS, reporter=Silent())
    monkeypatch.setattr(start, "train", lambda run, _, **given: train(run.model_copy(update={"lora_r": 4}), **given))
    return module


def test_a_run_of_another_version_is_kept_aside_and_the_demo_begins_anew(demo, tmp_path, capsys):
    start.train(config(tmp_path, demo.RUN, lr=0.1), PARTS)
    (demo.RUN / "training_info.json").unlink()  # not finished: it would be resumed
    demo.train(restart=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "was made by another version" in lines[0]
    assert (tmp_path / "run.old-1" / "adapter_model.safetensors").exists()
    assert (demo.RUN / "training_info.json").exists()
    demo.train(restart=False)  # its own run is recognised
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run.old-2").exists()


def test_the_demo_is_in_the_list_of_runs(demo):
    demo.train(restart=False)
    assert known_runs() == [demo.RUN]


def test_what_to_do_next_exists_and_names_the_page_with_the_answers(demo):
    """Every command of the last paragraph parses; the answers are in the HTML report."""
    import shlex

    import typer

    from rescoldo.cli.main import app

    said = demo.next_steps()
    assert "comparison.html" in said
    assert "comparison.md" not in said
    called = demo.program()
    lines = [line.split(f" {called} ", 1)[1] for line in said.splitlines() if f" {called} " in line]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line)
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("rescoldo", words)


@pytest.mark.parametrize(
    ("prefix", "first"), [("", "Fine-Tuning LoRA - "), ("FASE 8.4: ", "FASE 8.4: Fine-Tuning LoRA - ")]
)
def test_only_the_script_numbers_its_heading(tmp_path, prefix, first):
    reporter = Silent()
    reporter.heading_prefix = prefix
    start.train(config(tmp_path, tmp_path / "run"), parts=PARTS, reporter=reporter)
    assert reporter.text.startswith(first)
