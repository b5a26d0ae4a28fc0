"""Sweeps on a tiny model: one base in memory, resumed, the same runs as by themselves."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rescoldo.assemble import real_parts
from rescoldo.cli.main import app, run_app
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.run.status import read_status
from rescoldo.sweep import read_space, sweep
from rescoldo.training.config import RunConfig
from rescoldo.training.metrics import TensorBoard
from rescoldo.training.parts import Parts
from rescoldo.training.start import train
from tests.base.make_models import tiny_hf
from tests.training.fake import Silent
from tests.training.test_real import write_records

SPACE = read_space(["lora_r=2,4", "lora_targets=q_proj+v_proj,all"])
SHORT = Sampling(max_new_tokens=3)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    tiny_hf(folder / "base", "qwen3", max_position_embeddings=4096, intermediate_size=128)
    write_records(folder / "train.jsonl", 0, 3)
    write_records(folder / "val.jsonl", 3, 5)
    return folder


def make(folder: Path, output: Path, **fields: Any) -> RunConfig:
    given = {"train": folder / "train.jsonl", "val": folder / "val.jsonl", "output": output}
    settings = {"base_model": str(folder / "base"), "epochs": 1, "lr": 1e-2, "grad_accum": 2, "quantization": "int8"}
    return RunConfig(**(given | settings | {"max_length": 4096, "threads": 1} | fields))


def quiet_parts(**changes: Any) -> Parts:
    return replace(real_parts(), preflight=lambda *_: None, **changes)


@pytest.fixture(scope="module")
def calm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, int]]:
    """A sweep that was left alone: its output, its document, and how often the base was read."""
    output, calls, parts = tmp_path_factory.mktemp("calm") / "out", dict.fromkeys(("model", "data"), 0), quiet_parts()

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*args, **named)

        return call

    counting = replace(
        parts, load_model=counted("model", parts.load_model), read_dataset=counted("data", parts.read_dataset)
    )
    result = sweep(make(folder, output), SPACE, limit=1, sampling=SHORT, reporter=Silent(), parts=counting)
    return output, result.document, calls


def comparable(document: dict[str, Any]) -> list[dict[str, Any]]:
    clocks = ("seconds", "scored_seconds", "run")
    return [{key: value for key, value in trial.items() if key not in clocks} for trial in document["trials"]]


def test_base_and_data_are_read_once(calm: Any) -> None:
    output, document, calls = calm
    assert calls == {"model": 1, "data": 2}
    assert [trial["params"]["lora_r"] for trial in document["trials"]] == [2, 2, 4, 4]
    assert all(trial["status"] == "finished" for trial in document["trials"])
    assert document["finished"]
    assert json.loads((output / "sweep.json").read_text()) == document
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "trial-004" in (output / "sweep.md").read_text()


def test_trials_are_the_runs_they_would_be_alone(folder: Path, calm: Any, tmp_path: Path) -> None:
    output, document, _ = calm
    trial = document["trials"][3]
    alone = make(folder, tmp_path / "alone", lora_r=4, lora_targets="all", lora_alpha=16.0)
    train(alone, reporter=Silent(), parts=quiet_parts())
    assert sha256(tmp_path / "alone" / WEIGHTS) == sha256(output / trial["name"] / WEIGHTS)
    info = json.loads((output / trial["name"] / "training_info.json").read_text())
    assert info["lora_alpha"] == 16.0, "alpha follows the rank: 32/8 is kept"


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)])
def test_interrupted_sweeps_end_alike(folder: Path, calm: Any, tmp_path: Path, steps: int) -> None:
    _, document, _ = calm
    parts, count = quiet_parts(), 0

    def killing(*args: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return parts.gradient_step(*args, **named)

    config = make(folder, tmp_path / "out", checkpoint_minutes=0)
    disturbed = replace(parts, gradient_step=killing)
    result = sweep(config, SPACE, limit=1, sampling=SHORT, reporter=Silent(), parts=disturbed)
    assert result.signal == signal.SIGTERM
    assert not result.document["finished"]
    again = sweep(config, SPACE, limit=1, sampling=SHORT, reporter=Silent(), parts=parts)
    assert comparable(again.document) == comparable(document)
    third = sweep(config, SPACE, limit=1, sampling=SHORT, reporter=Silent(), parts=quiet_parts(load_model=None))
    assert comparable(third.document) == comparable(document)  # nothing is loaded for a sweep that is finished


def test_more_values_go_on_and_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    config = make(folder, tmp_path / "out")

    def go(config: RunConfig, *over: str) -> dict[str, Any]:
        space = read_space([*over])
        return sweep(config, space, limit=1, sampling=SHORT, reporter=Silent(), parts=quiet_parts()).document

    assert len(go(config, "lora_r=2")["trials"]) == 1
    assert [trial["params"]["lora_r"] for trial in go(config, "lora_r=2,4")["trials"]] == [2, 4]
    for other, message in ({"lr": 0.1}, r"lr: 0.01 → 0.1"), ({"train_limit": 2}, "train_limit: none → 2"):
        with pytest.raises(RescoldoError, match=message):
            go(make(folder, tmp_path / "out", **other), "lora_r=2")
    with pytest.raises(RescoldoError, match="rank 1000"):  # before the one that fits
        go(make(folder, tmp_path / "first"), "lora_r=2,1000")
    assert not (tmp_path / "first").exists()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text("{")
    with pytest.raises(RescoldoError, match="not a readable sweep"):
        go(make(folder, tmp_path / "damaged"), "lora_r=2")


def test_a_trial_that_fails_is_passed_over_until_it_is_asked_for_again(folder: Path, tmp_path: Path) -> None:
    config, space, parts = make(folder, tmp_path / "out"), read_space(["lora_r=2,4,3"]), quiet_parts()

    def failing(model: Any, *args: Any, **named: Any) -> Any:
        if model.lora.rank == 4:
            raise RescoldoError("no room", fix="make some", exit_code=1)
        return parts.gradient_step(model, *args, **named)

    def go(parts: Parts, **more: Any) -> list[tuple[int, str]]:
        found = sweep(config, space, limit=1, sampling=SHORT, reporter=Silent(), parts=parts, **more)
        return [(trial["params"]["lora_r"], trial["status"]) for trial in found.document["trials"]]

    passed_over = [(2, "finished"), (4, "failed"), (3, "finished")]
    assert go(replace(parts, gradient_step=failing)) == passed_over
    assert "no room" in (tmp_path / "out" / "sweep.md").read_text()
    assert go(parts) == passed_over
    assert go(parts, retry=True) == [(2, "finished"), (4, "finished"), (3, "finished")]


@pytest.mark.parametrize("moment", ["loading", "scoring"])
def test_a_signal_outside_of_training(folder: Path, calm: Any, tmp_path: Path, moment: str) -> None:
    _, document, _ = calm
    parts = quiet_parts()

    def loading(*args: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return parts.load_model(*args, **named)

    class Scoring:
        def say(self, text: str) -> None:
            pass

        def answering(self, *args: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)

    config = make(folder, tmp_path / "out")
    said = Silent()
    common: dict[str, Any] = {"limit": 1, "sampling": SHORT}
    if moment == "loading":
        result = sweep(config, SPACE, reporter=said, parts=replace(parts, load_model=loading), **common)
    else:
        result = sweep(config, SPACE, reporter=said, parts=parts, console=Scoring(), **common)
    assert result.signal == signal.SIGTERM
    assert said.text.splitlines()[-1] == "stopped in trial-001. The same command again resumes."
    found = read_status(tmp_path / "out")
    assert (found.status, found.trial) == ("stopped", str(tmp_path / "out" / "trial-001"))
    again = sweep(config, SPACE, reporter=Silent(), parts=parts, **common)
    assert comparable(again.document) == comparable(document)


def test_seen_from_outside(calm: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output, document, _ = calm
    best = document["best"]["by_score"]
    for command, code, words in (
        ("status", 0, f"4 trials finished; best so far: {best}"),
        ("watch", 0, "loss by step"),
        ("verify", 2, f"rescoldo verify {output / best}"),
    ):
        monkeypatch.setattr("sys.argv", ["rescoldo", command, str(output)])
        assert run_app(app) == code
        captured = capsys.readouterr()
        assert words in captured.out + captured.err


def test_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: Any) -> tuple[int, str, str]:
        data = ["--train", folder / "train.jsonl", "--val", folder / "val.jsonl", "--base-model", folder / "base"]
        more = ["--output", tmp_path / "out", "--epochs", 1, "--max-length", 4096, "--threads", 1, "--limit", 1]
        fast = ["--max-new-tokens", 3, "--quantization", "fp32", "--force"]
        monkeypatch.setattr("sys.argv", ["rescoldo", "sweep", *map(str, [*data, *more, *fast, *args])])
        code = run_app(app)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, err = run("--over", "lr=1e-4..1e-2", "--over", "lora_r=2..4", "--trials", 2, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [trial["status"] for trial in document["trials"]] == ["finished", "finished"]
    assert document["best"]["by_score"] in ("trial-001", "trial-002")
    code, out, err = run("--over", "lr=1e-4..1e-2", "--over", "lora_r=2..4", "--trials", 2)
    assert code == 0
    assert "Best by the metric" in out
    for args, message in (
        (["--over", "lr=1e-4..1e-2"], "a grid needs values"),
        (["--over", "lr=1e-4", "--lr", 1e-3], "lr is both fixed and swept"),
        ([], "nothing to vary"),
    ):
        code, _, err = run(*args)
        assert code == 2
        assert message in err
