"""Runs on conversations, tools, thinking and plain text, with the real engine and a tiny random model."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rescoldo.assemble import real_parts
from rescoldo.cli.main import app, run_app
from rescoldo.data.chat_template import thinks
from rescoldo.doctor.examine import examine
from rescoldo.errors import RescoldoError
from rescoldo.evaluation.evaluation import evaluate_model
from rescoldo.models.loaded import load_for_inference
from rescoldo.training.config import RunConfig, make_config
from rescoldo.training.metrics import TensorBoard
from rescoldo.training.start import train
from tests.base.make_models import tiny_hf
from tests.data.examples import write
from tests.data.templates import THINKING_TOOLS
from tests.training.fake import Silent
from tests.training.test_resume import Killed, results

WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a place.", "parameters": {}}}


def chat(i: int, *, thinking: bool = False) -> dict[str, Any]:
    """A question, a call, its result, an answer, another question and its answer."""
    call = {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"place": i})}}
    more = {"reasoning_content": f"It is number {i}."} if thinking else {}
    return {
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": f"Is it warm in place {i}?"},
            {"role": "assistant", "content": "", "tool_calls": [call], **more},
            {"role": "tool", "tool_call_id": f"c{i}", "content": str(i)},
            {"role": "assistant", "content": f"It has {i} degrees.", "weight": i % 2},
            {"role": "user", "content": "And is that much?"},
            {"role": "assistant", "content": "No." if i < 20 else "Yes."},
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    tiny_hf(folder / "base", "llama", max_position_embeddings=1024, intermediate_size=128)
    settings = folder / "base" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": THINKING_TOOLS}))
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    write(folder / "train.jsonl", *(chat(i) for i in range(5)))
    write(folder / "val.jsonl", *(chat(i) for i in range(5, 7)))
    write(folder / "thinking.jsonl", *(chat(i, thinking=i > 1) for i in range(5)))
    (folder / "text.md").write_text("A text of a field, with its words. " * 60)
    (folder / "other.txt").write_text("Another text of that field. " * 20)
    return folder


def make(folder: Path, output: Path, **fields: Any) -> RunConfig:
    given = {"train": folder / "train.jsonl", "val": folder / "val.jsonl", "output": output, "role": "generic"}
    settings = {"base_model": str(folder / "base"), "epochs": 2, "lr": 1e-3, "batch_size": 2, "grad_accum": 2}
    return RunConfig(**(given | settings | {"max_length": 512, "threads": 1, "quantization": "fp32"} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": "text.md:0.3"},
        {"train": "text.md", "val": "other.txt", "max_length": 64, "epochs": 1},
        {"train": "thinking.jsonl", "thinking": "mask", "prompt_loss_weight": 0.1},
    ],
    ids=["conversations", "with text", "text", "thinking"],
)
def test_killed_runs_end_alike(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: Any) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))
    fields = {name: Path(value) if name in ("train", "val") else value for name, value in fields.items()}
    calm = train(make(folder, tmp_path / "calm", **fields), real_parts(), reporter=Silent())
    parts, dice, kills = real_parts(), random.Random(str(fields)), 0
    while True:
        left = dice.randint(1, 3)

        class Step(parts.gradient_step):  # type: ignore[misc, name-defined]
            def micro_batch(self, indices: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return super().micro_batch(indices)

        stormy = make(folder, tmp_path / "stormy", checkpoint_minutes=0.0, **fields)
        try:
            train(stormy, replace(parts, gradient_step=Step), reporter=Silent())
            break
        except Killed:
            kills += 1
    assert kills > 1
    assert results(tmp_path / "stormy") == results(tmp_path / "calm")
    if fields.get("val") == Path("other.txt"):
        best = calm.info["losses"][calm.info["best_epoch"] - 1]["val_loss"]
        assert calm.info["val_perplexity"] == pytest.approx(math.exp(best))
        assert calm.info["text_windows"] == calm.info["train_examples"] > 10
    assert thinks(load_for_inference(str(tmp_path / "calm"), lazy=True).tokenizer) == ("thinking" in fields)


def test_settings_that_are_new_do_not_change_what_a_run_is(folder: Path, tmp_path: Path) -> None:
    """A run that an earlier version began goes on: its identity has none of them."""
    result = train(make(folder, tmp_path / "run", max_steps=1), real_parts(), reporter=Silent())
    assert not {"loss", "thinking", "text", "prompt_loss_weight", "balance_classes"} & set(result.info["identity"])
    with pytest.raises(RescoldoError, match="loss: none → last"):
        train(make(folder, tmp_path / "run", max_steps=1, loss="last"), real_parts(), reporter=Silent())


def test_doctor_and_plan_know_text(folder: Path, tmp_path: Path) -> None:
    config = make(folder, tmp_path / "run", train=folder / "text.md", val=folder / "other.txt", max_length=64)
    found = {check.name: check for check in examine(config, real_parts())}
    assert not [check for check in found.values() if check.level == "failure"]
    assert found["training data"].level in ("ok", "warning")


def test_validation_text_that_is_trained_on_is_found(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.md"
    copy.write_text((folder / "text.md").read_text())
    config = make(folder, tmp_path / "run", train=folder / "text.md", val=copy)
    assert any(check.name == "leakage" and check.level == "failure" for check in examine(config, real_parts()))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"text": "none.txt"}, "there is no file none.txt"),
        ({"text": "a.txt:2"}, "the share 2 is not between 0 and 1"),
        ({"loss": "first"}, "all or last"),
        ({"thinking": "no"}, "keep, drop or mask"),
        ({"prompt_loss_weight": 2}, "from 0 to 1"),
        ({"balance_classes": True}, "these are not classes"),
    ],
)
def test_what_cannot_be_asked_for(folder: Path, tmp_path: Path, fields: dict[str, Any], what: str) -> None:
    given = make(folder, tmp_path / "run").model_dump(exclude_unset=True)

    def asked() -> None:
        train(make_config({**given, **fields}), real_parts(), reporter=Silent())

    with pytest.raises(RescoldoError) as caught:
        asked()
    assert what in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def labelled(i: int) -> dict[str, Any]:
    return {"prompt": f"Is {i} even or odd?", "completion": "odd" if i % 2 else "even"}


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command."""
    monkeypatch.setattr("sys.argv", ["rescoldo", *words])
    return run_app(app)


def test_labels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [write(tmp_path / name, *map(labelled, numbers)) for name, numbers in SETS.items()]
    run = tmp_path / "run"
    config = make(folder, run, train=data[0], val=data[1], balance_classes=True, max_steps=2)
    assert train(config, real_parts(), reporter=Silent()).info["train_examples"] == 14
    document = evaluate_model(str(run), data[2], choices=True, output=tmp_path / "eval.json")
    part = document["models"]["finetuned"]
    assert part["labels"]["accuracy"] == part["component_scores"]["exact_match"]
    found = part["choices"]
    assert found["labels"] == ["even", "odd"]
    assert all(sum(row.values()) == pytest.approx(1) for row in found["probabilities"])
    assert isinstance(found["temperature"], float)
    assert found["nll"] >= 0
    assert "macro F1" in (tmp_path / "eval.md").read_text()
    assert called(monkeypatch, "eval", str(run), "--dataset", str(folder / "val.jsonl"), "--choices") == 2
    assert "not labels" in capsys.readouterr().err


SETS = {"train.jsonl": (0, 1, 2, 4, 6, 8, 10, 12), "val.jsonl": (21, 22, 23, 24), "test.jsonl": (31, 32, 33, 34, 35)}


def test_text_is_not_scored(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "eval", str(folder / "base"), "--dataset", str(folder / "text.md")) == 2
    assert "no questions and answers" in capsys.readouterr().err
