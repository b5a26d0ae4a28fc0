"""Our engine as predictor, and the command, on a tiny random model with an adapter."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rescoldo.cli.main import app, run_app
from rescoldo.engine.types import LoraConfig, Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import compare_run, evaluate_model
from rescoldo.models import engine_chat
from rescoldo.models.engine_chat import EnginePredictor
from rescoldo.models.loaded import is_run, load_for_inference
from rescoldo.role import get_role
from tests.base.make_models import tiny_hf

ROLE = get_role("ba")
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "v_proj"))
SHORT = Sampling(max_new_tokens=6)


def texts(document: dict[str, Any]) -> list[str]:
    (part,) = document["models"].values()
    return [row["text"] for row in part["predictions"]]


def test_adapter_and_base_alone(run: Path, base: Path, dataset: Path) -> None:
    loaded = load_for_inference(str(run))
    assert loaded.precision == "fp32"
    tuned = evaluate_model(loaded, dataset, sampling=SHORT)
    alone = evaluate_model(loaded, dataset, sampling=SHORT, base=True)
    assert list(tuned["models"]) == ["finetuned"]
    assert list(alone["models"]) == ["base"]
    assert texts(tuned) != texts(alone)
    plain = evaluate_model(str(base), dataset, sampling=SHORT, quantization="fp32")
    assert texts(plain) == texts(alone)
    assert texts(evaluate_model(loaded, dataset, sampling=SHORT)) == texts(tuned), "the adapter is back"
    part = tuned["models"]["finetuned"]
    assert part["quantization"] == "fp32"
    assert all(row["tokens"] == 6 and not row["ended"] for row in part["predictions"])
    assert tuned["metadata"]["training_set"] == str(run / "train.jsonl")
    assert part["diagnostics"]["longest_copied_run"] is not None
    keys = {EnginePredictor(loaded, ROLE, adapter=on).fingerprint() for on in (True, False)}
    assert len(keys) == 2


def test_before_and_after(run: Path, dataset: Path, tmp_path: Path) -> None:
    loaded = load_for_inference(str(run))
    output = tmp_path / "c.json"
    document = compare_run(loaded, dataset, output=output, sampling=SHORT, train_limit=1)
    assert json.loads(output.read_text())["comparison"]["decision"]["winner"] == "base"
    assert output.with_suffix(".md").read_text().startswith("# Comparison")
    assert not list(tmp_path.glob("*partial*"))
    assert list(document["models"]) == ["base", "finetuned"]
    assert document["metadata"]["train_score"] == 0.0
    for name, alone in (("base", True), ("finetuned", False)):
        part = evaluate_model(loaded, dataset, sampling=SHORT, base=alone)["models"][name]
        assert [r["text"] for r in part["predictions"]] == [r["text"] for r in document["models"][name]["predictions"]]
    with pytest.raises(RescoldoError, match="is no run directory"):
        compare_run(load_for_inference(loaded.base.spec), dataset)


def test_several_samples_from_the_command(
    run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", run, "--dataset", dataset, "--samples", 3, "--max-new-tokens", 6, "-o", tmp_path / "e.json"]
    monkeypatch.setattr("sys.argv", ["rescoldo", *map(str, words), "--temperature", "0.9", "--lang", "es"])
    assert run_app(app) == 0
    assert "la mejor de 3" in capsys.readouterr().out
    part = json.loads((tmp_path / "e.json").read_text())["models"]["finetuned"]
    assert [step["k"] for step in part["sampled"]["by_k"]] == [1, 2, 3]
    assert len(part["predictions"]) == 9
    assert len({row["text"] for row in part["predictions"] if row["example"] == 0}) > 1
    monkeypatch.setattr("sys.argv", ["rescoldo", *map(str, words)])
    assert run_app(app) == 2
    assert "greedy answers are the same every time" in capsys.readouterr().err


def test_the_base_held_to_the_form_is_a_contender(run: Path, dataset: Path) -> None:
    loaded = load_for_inference(str(run))
    document = compare_run(loaded, dataset, sampling=SHORT, constrained=True)
    assert list(document["models"]) == ["base", "base_constrained", "finetuned"]
    held = document["models"]["base_constrained"]
    assert (held["constrained"], held["adapter"]) == ("yaml", False)
    assert all("title:".startswith(row["text"][:6]) or row["text"].startswith("title:") for row in held["predictions"])
    assert document["comparison"]["decision"]["reference"] == "base"
    missing = document["comparison"]["decision"]["content"]["missing"]
    assert not any("base_constrained" in word for one in missing for word in one["command"] or ())


@pytest.mark.parametrize("room", [True, False])
def test_models_that_share_their_weights_answer_in_one_batch(
    run: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """The answers are each model's own; where there is no memory for all caches, they come one after the other."""
    asked: list[int] = []
    together = engine_chat.complete_together

    def counted(chats: Any, *rest: Any) -> Any:
        asked.append(len(chats))
        return together(chats, *rest)

    monkeypatch.setattr(engine_chat, "complete_together", counted)
    if not room:
        monkeypatch.setattr(engine_chat, "memory_available", lambda: 1 << 10)
    loaded = load_for_inference(str(run))
    said = Heard()
    document = compare_run(loaded, dataset, sampling=SHORT, constrained=True, console=said)
    assert asked == ([3] if room else [])
    assert not any("there already" in line for line in said.lines)
    for name, settings in (
        ("base", {"base": True}),
        ("base_constrained", {"base": True, "constrained": True}),
        ("finetuned", {}),
    ):
        alone = evaluate_model(loaded, dataset, sampling=SHORT, **settings)  # type: ignore[arg-type]
        assert texts(alone) == [row["text"] for row in document["models"][name]["predictions"]]


class Heard:
    """A console that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def answering(self, name: str, total: int, done: int, most_tokens: int) -> Any:
        return contextlib.nullcontext()


@pytest.mark.parametrize("quantization", ["int8", "nf4", "bnb4", "bf16"])
def test_quantizations(run: Path, dataset: Path, quantization: str) -> None:
    part = evaluate_model(str(run), dataset, sampling=SHORT, quantization=quantization, limit=1)["models"]["finetuned"]
    assert part["quantization"] == {"bnb4": "nf4"}.get(quantization, quantization)
    assert part["predictions"][0]["tokens"] == 6


def test_greedy_answers_are_transformers_own(run: Path, dataset: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from rescoldo.data import read_records
    from rescoldo.data.tokenize import prompt_ids

    loaded = load_for_inference(str(run))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(loaded.base.path, dtype=torch.float32), str(run)
    )
    mine = texts(evaluate_model(loaded, dataset, sampling=SHORT))
    for one, text in zip(read_records(dataset, answers=False), mine, strict=True):
        ids = torch.tensor([prompt_ids(ROLE.messages(one), loaded.tokenizer)])
        out = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == text


def test_prompts_beyond_the_context_are_failures(base: Path, dataset: Path, tmp_path: Path) -> None:
    small = tiny_hf(tmp_path / "small", "llama", max_position_embeddings=512)
    with pytest.raises(RescoldoError, match=r"none of 3 answers could be had \(.*the model's context 512\)"):
        evaluate_model(str(small), dataset, sampling=SHORT)


def change_info(run: Path, tmp_path: Path, **changes: Any) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    info = json.loads((run / "training_info.json").read_text())
    (copy / "training_info.json").write_text(json.dumps({**info, **changes}))
    return copy


def test_runs_that_are_damaged(run: Path, tmp_path: Path) -> None:
    copy = change_info(run, tmp_path, base_fingerprint="0" * 64)
    with pytest.raises(RescoldoError, match="another base model"):
        load_for_inference(str(copy))
    (copy / "training_info.json").write_text("{")
    with pytest.raises(RescoldoError, match=r"training_info\.json: this is not valid JSON"):
        load_for_inference(str(copy))
    (copy / "training_info.json").write_text(
        json.dumps({"base_model": json.loads((run / "training_info.json").read_text())["base_model"]})
    )
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(RescoldoError, match="does not fit its base model"):
        load_for_inference(str(copy))
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(RescoldoError, match="is missing"):
        load_for_inference(str(copy))


def test_is_run(run: Path, base: Path, tmp_path: Path) -> None:
    assert is_run(str(run))
    assert not is_run(str(base))
    assert not is_run("sample:smollm2")
    assert not is_run(str(tmp_path / "nothing"))


def test_adapter_without_training_info(run: Path, tmp_path: Path, dataset: Path) -> None:
    copy = change_info(run, tmp_path)
    (copy / "training_info.json").unlink()
    mine, theirs = (evaluate_model(str(p), dataset, sampling=SHORT, quantization="fp32") for p in (run, copy))
    assert texts(mine) == texts(theirs)


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", "eval", *map(str, args)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command(
    run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "eval.json"
    arguments = (run, "--dataset", dataset, "--max-new-tokens", 5, "-o", output)
    code, out, err = command(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert f"Written: {output}" in out
    assert sorted(path.name for path in output.parent.iterdir()) == ["eval.html", "eval.json", "eval.md"]
    first = json.loads(output.read_text())
    code, out, err = command(monkeypatch, capsys, *arguments, "--json")
    assert code == 0
    assert texts(json.loads(out)) == texts(first)
    assert len(out.splitlines()) == 1
    code, out, _ = command(monkeypatch, capsys, "--help")
    assert " eval artifacts/demo/run" in " ".join(out.split()).partition("Example: ")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature -1 is not allowed: use a number from 0 to 100"),
        (["--temperature", "nan"], "--temperature"),
        (["--top-p", "0"], "--top-p"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--limit", "0"], "--limit: 0 leaves nothing"),
        (["--quantization", "int3"], "there is no quantization 'int3'"),
        (["--role", "poet"], "no role 'poet'"),
        (["--train", "nothing.jsonl"], "nothing.jsonl: there is no such file"),
        (["--output", "{dataset}"], "exists and is no evaluation"),
        (["--output", "{folder}"], "is a directory"),
        (["--output", "{dataset}/x.json"], "cannot be written"),
    ],
)
def test_bad_flags(
    arguments: list[str], message: str, run: Path, dataset: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    filled = [text.format(dataset=dataset, folder=tmp_path) for text in arguments]
    before = sorted(tmp_path.iterdir()), dataset.read_bytes()
    code, _, err = command(monkeypatch, capsys, run, "--dataset", dataset, *filled)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert (sorted(tmp_path.iterdir()), dataset.read_bytes()) == before


def test_base_of_a_base(
    base: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(monkeypatch, capsys, base, "--dataset", dataset, "--base")
    assert code == 2
    assert "is a base model already" in err
