"""The four functions for people who work in Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rescoldo
from rescoldo import RescoldoError
from rescoldo.api import TrainSettings
from tests.data.examples import record, write
from tests.serve.common import tiny_run

ASKED = {"concept": "A tool library"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def model(run: Path) -> rescoldo.Model:
    return rescoldo.load(run, quantization="fp32")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "val.jsonl", *[{"concept": record(i)["concept"]} for i in range(3)])


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, rescoldo\n"
        "heavy = {'torch', 'numpy', 'transformers', 'scipy', 'pydantic', 'yaml', 'rich', 'typer', 'asyncio'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_settings_are_those_of_a_run() -> None:
    from rescoldo.training.config import RunConfig

    fields = {name for name, field in RunConfig.model_fields.items() if not field.is_required()}
    assert set(TrainSettings.__annotations__) == fields


def test_ask(run: Path, model: rescoldo.Model) -> None:
    from rescoldo.engine.types import Sampling
    from rescoldo.models.engine_chat import EnginePredictor
    from rescoldo.models.loaded import load_for_inference

    predictor = EnginePredictor(load_for_inference(str(run), "fp32"), model.role)
    ((_, expected),) = predictor.predict([dict(ASKED)], Sampling(max_new_tokens=12))
    answer = model.ask(ASKED, max_new_tokens=12)
    assert (answer.text, answer.ended, answer.tokens) == (expected.text, expected.ended, expected.tokens)
    assert str(answer) == answer.text
    assert bool(answer.fault) == (answer.value is None)
    assert model.ask("A tool library", max_new_tokens=12).text == answer.text
    assert model.ask(ASKED, base=True, max_new_tokens=12).text != answer.text
    assert model.precision == "fp32"
    assert model.spec == str(run)


def test_ask_several(model: rescoldo.Model) -> None:
    inputs = [{"concept": record(i)["concept"]} for i in range(3)]
    together = model.ask_all(inputs, max_new_tokens=6)
    assert [answer.text for answer in together] == [model.ask(one, max_new_tokens=6).text for one in inputs]
    assert model.ask_all([]) == []


def test_what_an_answer_says(model: rescoldo.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from rescoldo.models.predictor import Prediction

    def complete(self, conversations, sampling, on_progress=None):
        yield 0, Prediction("title: Shelves\ndescription: many", True, 7, 0.1)

    monkeypatch.setattr("rescoldo.models.engine_chat.EngineChat.complete", complete)
    answer = model.ask(ASKED)
    assert answer.fault == ""
    assert answer.value["title"] == "Shelves"


@pytest.mark.parametrize(
    ("asked", "sampling", "named"),
    [
        ({"concpt": "A tool library"}, {}, "concept"),
        ({"concept": 7}, {}, "concept"),
        (ASKED, {"temperature": -1}, "temperature"),
        (ASKED, {"top_p": 0}, "top_p"),
        (ASKED, {"max_new_tokens": 1.5}, "max_new_tokens"),
        (ASKED, {"seed": True}, "seed"),
        (ASKED, {"max_tokens": 5}, "max_tokens"),
        ({"concept": "word " * 5000}, {}, "context"),
    ],
)
def test_what_cannot_be_asked(model: rescoldo.Model, asked, sampling, named) -> None:
    with pytest.raises(RescoldoError, match=named):
        model.ask(asked, **sampling)


def test_evaluate(run: Path, model: rescoldo.Model, dataset: Path) -> None:
    from rescoldo.engine.types import Sampling
    from rescoldo.evaluation.evaluation import evaluate_model

    expected = evaluate_model(str(run), dataset, sampling=Sampling(max_new_tokens=8), quantization="fp32")
    found = rescoldo.evaluate(model, dataset, max_new_tokens=8)
    part = found.document["models"]["finetuned"]
    assert [row["text"] for row in part["predictions"]] == [
        row["text"] for row in expected["models"]["finetuned"]["predictions"]
    ]
    assert found.score == part["scores"]["mean"] == expected["models"]["finetuned"]["scores"]["mean"]
    assert found.components == part["component_scores"]
    base = rescoldo.evaluate(run, dataset, base=True, limit=1, quantization="fp32", max_new_tokens=8)
    assert len(base.document["models"]["base"]["predictions"]) == 1


def test_compare(run: Path, dataset: Path, tmp_path: Path) -> None:
    settings = {"quantization": "fp32", "max_new_tokens": 8}
    found = rescoldo.compare(run, dataset, output=tmp_path / "c.json", **settings)
    assert set(found.scores) == {"base", "base_constrained", "finetuned"}
    assert (found.adopt, found.sentence) == (
        found.document["comparison"]["decision"]["verdict_code"] == "adopt",
        found.document["comparison"]["decision"]["verdict"],
    )
    assert (tmp_path / "c.html").exists()
    other = str(run.parent / "base")
    assert "baseline_constrained" in rescoldo.compare(run, dataset, baseline=other, limit=1, **settings).scores
    with_other = rescoldo.compare(run, dataset, baseline=other, constrained=False, **settings)
    assert with_other.scores == {"baseline": found.scores["base"], "finetuned": found.scores["finetuned"]}


def test_train(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train.jsonl", *map(record, range(2)))
    val = write(tmp_path / "val.jsonl", *map(record, range(2, 4)))
    paths = {"train": train, "val": val, "output": tmp_path / "out"}
    settings = {"base_model": str(run.parent / "base"), "quantization": "fp32", "epochs": 1, "lora_r": 2}
    result = rescoldo.train(**paths, **settings, force=True, quiet=True)
    assert result.status == "finished"
    assert rescoldo.train(**paths, **settings, quiet=True).status == "already finished"
    assert capsys.readouterr().out == ""
    assert rescoldo.load(tmp_path / "out").ask(ASKED, max_new_tokens=2).tokens <= 2
    with pytest.raises(RescoldoError, match="did you mean epochs"):
        rescoldo.train(**paths, epoch=1)
