"""Training on preferences with the real engine: each objective learns, and interrupted runs end with the same bytes."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rescoldo.assemble import real_parts
from rescoldo.errors import RescoldoError
from rescoldo.training.config import RunConfig
from rescoldo.training.metrics import TensorBoard
from rescoldo.training.start import train
from tests.base.make_models import tiny_hf
from tests.training.fake import Silent
from tests.training.test_resume import Killed, results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    tiny_hf(folder / "base", "llama", max_position_embeddings=4096, intermediate_size=128)
    for name, numbers in (("train", range(6)), ("val", range(6, 8))):
        pairs = [
            {"prompt": f"What is thing {i}?", "chosen": f"A useful thing, number {i}.", "rejected": "Nothing at all."}
            for i in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def make(folder: Path, output: Path, **fields: Any) -> RunConfig:
    given = {"train": folder / "train.jsonl", "val": folder / "val.jsonl", "output": output, "role": "generic"}
    settings = {"base_model": str(folder / "base"), "epochs": 3, "lr": 5e-3, "grad_accum": 3, "lora_r": 4}
    return RunConfig(**(given | settings | {"threads": 1, "quantization": "fp32", "lora_targets": "all"} | fields))


@pytest.mark.parametrize("objective", ["dpo", "ipo", "orpo", "kto"])
def test_learns_and_survives_interruptions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))
    calm = train(make(folder, tmp_path / "calm", objective=objective), real_parts(), reporter=Silent())
    lines = [json.loads(line) for line in (tmp_path / "calm" / "metrics.jsonl").read_text().splitlines()]
    before, after = lines[0], lines[-1]
    assert after["val_loss"] < before["val_loss"]
    assert after["val_margin"] > before["val_margin"]
    assert after["val_accuracy"] == 1.0
    if objective == "dpo":
        assert before["val_loss"] == pytest.approx(math.log(2), abs=1e-6)  # the model is its own reference
    if objective == "kto":
        assert before["val_loss"] == pytest.approx(0.5, abs=1e-6)
    assert calm.info["config"]["objective"] == objective

    dice, kills = random.Random(objective), 0
    while True:
        left = dice.randint(1, 7)

        def counted(examples: int = 1) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        parts = real_parts()

        class Step(parts.gradient_step):  # type: ignore[misc, name-defined]
            def micro_batch(self, indices: list[int]) -> float:
                counted()
                return super().micro_batch(indices)

        def evaluate(model: Any, examples: Any, parts: Any = parts) -> Any:
            counted()
            return parts.evaluate_loss(model, examples)

        stormy = make(folder, tmp_path / "stormy", objective=objective, checkpoint_minutes=0.0)
        try:
            train(stormy, replace(parts, gradient_step=Step, evaluate_loss=evaluate), reporter=Silent())
            break
        except Killed:
            kills += 1
    assert kills > 1
    assert results(tmp_path / "stormy") == results(tmp_path / "calm")


@pytest.mark.parametrize(
    ("fields", "where", "what"),
    [
        ({"beta": 0.2}, "--beta", "dpo, ipo, orpo, kto"),
        ({"objective": "dpo", "desirable_weight": 2.0}, "--desirable-weight", "kto"),
        ({"objective": "kto", "grad_accum": 1}, "--grad-accum", "got 1"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(folder: Path, tmp_path: Path, fields: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(RescoldoError) as caught:
        train(make(folder, tmp_path / "run", **fields), real_parts(), reporter=Silent())
    assert caught.value.where == where
    assert what in str(caught.value)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.json"))


def test_pairs_without_an_objective_are_told_which(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RescoldoError, match="--objective dpo"):
        train(make(folder, tmp_path / "run"), real_parts(), reporter=Silent())
