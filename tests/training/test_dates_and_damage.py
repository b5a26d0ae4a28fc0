"""A run keeps one date; a damaged base model is blamed itself; advice that can be followed."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rescoldo.assemble import real_parts
from rescoldo.base import open_base
from rescoldo.base.damage import damaged_tensor
from rescoldo.data.dataset import read_dataset
from rescoldo.doctor.content import leaks
from rescoldo.errors import RescoldoError
from rescoldo.models.loaded import dated_tokenizer
from rescoldo.role import get_role
from rescoldo.training import prepare as preparing
from rescoldo.training.config import RunConfig
from rescoldo.training.prepare import prepare
from rescoldo.training.progress import Reporter
from tests.base.make_models import tiny_hf
from tests.data import templates
from tests.data.examples import write

LINES = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(4)]


def on(day: date) -> type[date]:
    """`date` as the program sees it on that day."""

    class Someday(date):
        @classmethod
        def today(cls) -> date:
            return day

    return Someday


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    base = tiny_hf(tmp_path / "base", "llama", vocab_size=288)
    (base / "chat_template.jinja").write_text(templates.LLAMA3)
    train, val = write(tmp_path / "t.jsonl", *LINES[:3]), write(tmp_path / "v.jsonl", LINES[3])
    return RunConfig(
        base_model=str(base),
        train=train,
        val=val,
        output=tmp_path / "out",
        role="generic",
        quantization="fp32",
        max_length=256,
        threads=1,
    )


def test_a_run_keeps_the_date_of_its_start(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepared(day: date, *, restart: bool = False) -> preparing.Prepared:
        monkeypatch.setattr(preparing, "date", on(day))
        return prepare(config, real_parts(), Reporter(), restart=restart)

    first = prepared(date(2026, 3, 7))
    assert "today's date: 2026-03-07 in all prompts of this run" in capsys.readouterr().out
    assert first.identity["chat date"] == "2026-03-07"
    assert "Today Date: 07 Mar 2026" in first.tokenizer.decode(first.train.examples[0].tokens)
    assert prepared(date(2026, 3, 8)).train.digest != first.train.digest, "nothing is written yet: another run"
    config.output.mkdir()
    (config.output / "run.json").write_text(json.dumps({"identity": first.identity}))
    later = prepared(date(2026, 3, 8))
    assert later.identity == first.identity
    assert prepared(date(2026, 3, 8), restart=True).identity["chat date"] == "2026-03-08"
    again = dated_tokenizer(open_base(config.base_model), {"chat_date": "2026-03-07"})
    assert again.chat_template == first.tokenizer.chat_template


def test_no_date_where_the_template_asks_for_none(config: RunConfig) -> None:
    (Path(config.base_model) / "chat_template.jinja").write_text(templates.CHATML)
    assert "chat date" not in prepare(config, real_parts(), Reporter(), restart=False).identity


def test_the_base_models_own_nan_is_named(tmp_path: Path) -> None:
    path = tiny_hf(tmp_path, "llama")
    assert damaged_tensor(open_base(str(path))) is None
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    error = damaged_tensor(open_base(str(path)))
    assert error is not None
    assert "model.layers.1.mlp.up_proj.weight holds 1 of" in error.what


def test_a_length_that_the_model_does_not_have_is_not_advised(tmp_path: Path) -> None:
    tokenizer = open_base(str(tiny_hf(tmp_path / "base", "llama"))).tokenizer()
    assert tokenizer.model_max_length == 256
    generic = get_role("generic")
    path = write(tmp_path / "d.jsonl", {"prompt": "x", "completion": "1 " * 50})
    with pytest.raises(RescoldoError) as caught:
        read_dataset(path, generic, tokenizer, 16, None)
    assert "--max-length 1" in str(caught.value.fix)
    path = write(tmp_path / "d.jsonl", {"prompt": "x", "completion": "1 " * 500})
    with pytest.raises(RescoldoError) as caught:
        read_dataset(path, generic, tokenizer, 16, None)
    assert "--max-length" not in str(caught.value.fix)
    assert "this one's has 256 tokens" in str(caught.value.fix)


def test_near_leakage_counts_rows_not_pairs(tmp_path: Path) -> None:
    tokenizer = open_base(str(tiny_hf(tmp_path / "base", "llama", max_position_embeddings=4096))).tokenizer()
    long = "Please tell me in one sentence where exactly the famous museum called Prado stands in"
    lines = [
        {"prompt": f"{long} {place}", "completion": "Here."} for place in ("town", "Spain", "Madrid", "it", "Europe")
    ]
    train = write(tmp_path / "t.jsonl", *lines)
    val = write(tmp_path / "v.jsonl", *({**line, "prompt": line["prompt"] + " now"} for line in lines[:3]))
    generic = get_role("generic")
    data = [read_dataset(path, generic, tokenizer, 4096, None) for path in (train, val)]
    (check,) = leaks(*data, generic)
    assert check.figures["near"] == 3
