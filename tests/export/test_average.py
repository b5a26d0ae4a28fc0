"""Averages of adapters: PEFT's "cat" is the oracle of the exact one, the plain formula that of the factors'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rescoldo.adapter import read_adapter
from rescoldo.cli.main import app
from rescoldo.doctor.verify import verify
from rescoldo.engine.config import LINEARS
from rescoldo.engine.types import LoraConfig
from rescoldo.errors import RescoldoError
from rescoldo.export import export_run
from rescoldo.export.average import average_runs
from rescoldo.models.loaded import load_for_inference
from tests.base.make_models import tiny_hf
from tests.export.common import make_run

SIZES: dict[str, Any] = {"max_position_embeddings": 4096, "intermediate_size": 96}
TOKENS = torch.arange(3, 60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("base") / "base", "llama", **SIZES)


def _lora(**more: Any) -> LoraConfig:
    return LoraConfig(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": LINEARS, **more})


def _runs(folder: Path, base: Path, *shapes: LoraConfig) -> list[Path]:
    return [make_run(folder / f"r{i}", str(base), lora=lora, size=0.3, seed=i + 1) for i, lora in enumerate(shapes)]


def _logits(run: Path) -> torch.Tensor:
    return load_for_inference(str(run), "fp32").model.logits(TOKENS)


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_the_exact_average_is_that_of_the_models_that_peft_merges(tmp_path: Path, base: Path, kind: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    runs = _runs(tmp_path, base, _lora(kind=kind), _lora(kind=kind, alpha=3.0))
    average_runs(runs, tmp_path / "both", weights=[7, 3])
    merged = []
    for run in runs:
        one = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run))
        merged.append(one.merge_and_unload())
    weights = [model.state_dict() for model in merged]
    merged[0].load_state_dict({name: 0.7 * weights[0][name] + 0.3 * weights[1][name] for name in weights[0]})
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "both"))
    with torch.no_grad():
        expected = merged[0](TOKENS[None]).logits[0]
        torch.testing.assert_close(_logits(tmp_path / "both"), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again(TOKENS[None]).logits[0], expected, atol=1e-4, rtol=1e-4)
    assert (expected - _logits(runs[0])).abs().max() > 0.05


def test_the_exact_average_is_pefts_cat(tmp_path: Path, base: Path) -> None:
    """And its linear makes two halves of one adapter twice as strong, which is why there is none here."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    runs = _runs(tmp_path, base, _lora(), _lora(alpha=3.0))
    average_runs(runs, tmp_path / "both", weights=[0.7, 0.3])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(runs[0]), adapter_name="a")
    model.load_adapter(str(runs[1]), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="cat")
    model.set_adapter("both")
    with torch.no_grad():
        torch.testing.assert_close(_logits(tmp_path / "both"), model(TOKENS[None]).logits[0], atol=1e-4, rtol=1e-4)
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    model.add_weighted_adapter(["a", "a"], [0.5, 0.5], "halves", combination_type="linear")
    torch.testing.assert_close(module.get_delta_weight("halves"), 2 * module.get_delta_weight("a"))


def test_ranks_that_differ_add_up(tmp_path: Path, base: Path) -> None:
    runs = _runs(tmp_path, base, _lora(ranks={"q_proj": 2}), _lora(rank=3), _lora(rank=1, alphas={"k_proj": 2.0}))
    average_runs(runs, tmp_path / "all", weights=[0.5, 0.25, 0.25])
    found, parts = read_adapter(tmp_path / "all"), [read_adapter(run) for run in runs]
    assert (found.lora.rank_of("q_proj"), found.lora.rank_of("o_proj")) == (6, 8)
    for module in {name.rpartition(".")[0] for name in found.parameters}:
        a, b = (found.parameters[f"{module}.lora_{side}"] for side in "AB")
        expected = sum(
            w * part.lora.scale_of(module) * part.parameters[f"{module}.lora_B"] @ part.parameters[f"{module}.lora_A"]
            for w, part in zip((0.5, 0.25, 0.25), parts, strict=True)
        )
        torch.testing.assert_close(found.lora.scale_of(module) * b @ a, expected)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_factors_average_keeps_the_rank_and_equal_adapters(tmp_path: Path, base: Path, kind: str) -> None:
    runs = _runs(tmp_path, base, _lora(kind=kind), _lora(kind=kind))
    average_runs([runs[0], runs[0]], tmp_path / "same", weights=[1, 4], method="factors")
    torch.testing.assert_close(_logits(tmp_path / "same"), _logits(runs[0]), atol=1e-5, rtol=1e-5)
    average_runs(runs, tmp_path / "both", method="factors")
    found, (first, second) = read_adapter(tmp_path / "both"), map(read_adapter, runs)
    assert found.lora == first.lora
    for name, tensor in found.parameters.items():
        torch.testing.assert_close(tensor, (first.parameters[name] + second.parameters[name]) / 2)


def test_an_average_is_used_as_a_run_is(tmp_path: Path, base: Path) -> None:
    runs = _runs(tmp_path, base, _lora(), _lora())
    result = CliRunner().invoke(
        app, ["merge", *map(str, runs), "--weights", "0.7,0.3", "--output", str(tmp_path / "both"), "--json"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [part["weight"] for part in document["averaged"]["parts"]] == pytest.approx([0.7, 0.3])
    checks = {check.name: check for check in verify(tmp_path / "both")}
    assert all(check.ok for check in checks.values()), checks
    assert "average of 0.7" in checks["training_info"].detail
    export_run(tmp_path / "both", "gguf-adapter")


@pytest.mark.parametrize(
    ("second", "more", "message"),
    [
        ({"kind": "rslora"}, {}, "different kinds"),
        ({"targets": ("q_proj",)}, {}, "different targets"),
        ({"layers": (1,)}, {}, "different layers"),
        ({"rank": 3}, {"method": "factors"}, "has rank 4 and alpha 8"),
        ({}, {"weights": [1.0]}, "1 weights for 2 adapters"),
        ({}, {"weights": [1.0, -1.0]}, "not above 0"),
        ({}, {"weights": [1.0, float("nan")]}, "not above 0"),
        ({}, {"method": "linear"}, "there is no method 'linear'"),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, base: Path, second: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    runs = _runs(tmp_path, base, _lora(), _lora(**second))
    with pytest.raises(RescoldoError, match=message):
        average_runs(runs, tmp_path / "both", **more)
    assert not (tmp_path / "both").exists()


def test_dora_and_other_bases_are_refused_by_name(tmp_path: Path, base: Path) -> None:
    runs = _runs(tmp_path, base, _lora(kind="dora"), _lora(kind="dora"))
    with pytest.raises(RescoldoError, match="DoRA has no exact average"):
        average_runs(runs, tmp_path / "both")
    other = tiny_hf(tmp_path / "other", "llama", **SIZES, hidden_size=32)
    runs = [_runs(tmp_path / "a", base, _lora())[0], _runs(tmp_path / "b", other, _lora())[0]]
    with pytest.raises(RescoldoError, match=r"was trained on .*base, .* on .*other"):
        average_runs(runs, tmp_path / "both")
    with pytest.raises(RescoldoError, match="holds no adapter"):
        average_runs([runs[0], tmp_path], tmp_path / "both")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(RescoldoError, match="not empty"):
        average_runs([runs[0], runs[0]], tmp_path / "full")
    assert (tmp_path / "full/mine.txt").read_text() == "mine"
