"""A role written from docs/roles.md alone, in a temporary directory, is checked, trained and evaluated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.evaluation import evaluate_model
from rescoldo.training.metrics import TensorBoard
from tests.base.make_models import tiny_hf

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "rescoldo"
TINY = ["--epochs", 1, "--lora-r", 2, "--threads", 1, "--max-length", 4096, "--quantization", "fp32"]


def documented(folder: Path) -> Path:
    """The files that docs/roles.md shows, written as it says: each in the block after its name."""
    text = (ROOT / "docs" / "roles.md").read_text(encoding="utf-8")
    files = re.findall(r"^`(tickets/[\w.]+)`[^\n]*\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["tickets/role.yaml", "tickets/metric.py", "tickets/samples.jsonl"]
    for name, content in files:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder / "tickets"


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", *map(str, args)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("base"), "llama", max_position_embeddings=4096, intermediate_size=128)


def listing() -> dict[str, int]:
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_documented_role(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))
    before = listing()
    role = documented(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = (role / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "val.jsonl").write_text(lines[2])

    code, out, _ = run(monkeypatch, capsys, "role", "check", "./tickets")
    assert code == 0, out
    code, out, _ = run(monkeypatch, capsys, "data", "audit", "--role", "./tickets", "train.jsonl", "val.jsonl")
    assert code == 0, out
    data = ["--train", "train.jsonl", "--val", "val.jsonl", "--output", "out", "--base-model", base]
    code, out, err = run(monkeypatch, capsys, "train", "--role", "./tickets", *data, *TINY, "--json")
    assert code == 0, err
    info = json.loads(out)["info"]
    assert info["role"] == "tickets"
    assert (tmp_path / "out" / "role" / "metric.py").read_bytes() == (role / "metric.py").read_bytes()

    args = ["--dataset", "val.jsonl", "--max-new-tokens", 5, "--json"]
    code, out, err = run(monkeypatch, capsys, "eval", "out", "--role", "./tickets", *args)
    assert code == 0, err
    document = json.loads(out)
    assert document["metadata"]["role"] == "tickets"
    part = document["models"]["finetuned"]
    assert list(part["component_scores"]) == ["completeness", "queue", "urgent", "reply", "right_queue"]
    assert part["sampling"]["max_new_tokens"] == 5
    code, _, err = run(monkeypatch, capsys, "eval", "out", *args)
    assert code == 2
    assert "Python code" in err

    (role / "metric.py").write_text("def right_queue(prediction, record):\n    return 1\n")
    code, _, err = run(monkeypatch, capsys, "train", "--role", "./tickets", *data, *TINY)
    assert code == 2
    assert "role: tickets" in err
    assert listing() == before


def test_a_run_of_the_generic_role_is_evaluated_as_such(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))
    lines = (PACKAGE / "role" / "builtin" / "generic" / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "val.jsonl").write_text("".join(lines[2:]))
    data = ["--train", tmp_path / "train.jsonl", "--val", tmp_path / "val.jsonl", "--base-model", base]
    code, out, err = run(
        monkeypatch, capsys, "train", "--role", "generic", *data, "--output", tmp_path / "out", *TINY, "--json",
        "--loss", "last",  # which is what is evaluated
    )  # fmt: skip
    assert code == 0, err
    trained = json.loads(out)["info"]
    code, out, err = run(
        monkeypatch,
        capsys,
        "eval",
        tmp_path / "out",
        "--dataset",
        tmp_path / "val.jsonl",
        "--max-new-tokens",
        4,
        "--json",
    )
    assert code == 0, err
    document = json.loads(out)
    assert document["metadata"]["role"] == "generic"
    found = document["models"]["finetuned"]["perplexity"]
    assert found["loss"] == pytest.approx(trained["losses"][0]["val_loss"], rel=1e-4)
    base_part = evaluate_model(str(tmp_path / "out"), tmp_path / "val.jsonl", base=True)["models"]["base"]
    assert base_part["perplexity"]["perplexity"] != found["perplexity"]
    code, _, err = run(monkeypatch, capsys, "eval", tmp_path / "out", "--dataset", write_asked(tmp_path))
    assert code == 2
    assert "completion: is missing" in err  # exact match needs the answers


def write_asked(folder: Path) -> Path:
    path = folder / "asked.jsonl"
    path.write_text('{"prompt": "Say yes."}\n')
    return path
