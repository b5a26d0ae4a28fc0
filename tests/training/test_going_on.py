"""Going on: from an adapter with --from, with more epochs in a finished run, with old examples mixed in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.adapter import read_adapter
from rescoldo.data.dataset import Dataset, digest
from rescoldo.data.replay import mixed
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError
from rescoldo.files import read_json, sha256
from rescoldo.run.layout import INFO_FILE, list_checkpoints
from rescoldo.training.checkpoint import UnresumableError
from rescoldo.training.config import RunConfig
from rescoldo.training.origin import read_origin
from rescoldo.training.start import train
from tests.training.fake import PARTS, Silent, config, write_data
from tests.training.test_resume import Killed, counting_parts, results

STEADY = {"lr_schedule": "constant", "warmup": 1}


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    from rescoldo.training.metrics import TensorBoard

    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))


def _train(made: RunConfig, parts: Any = PARTS) -> Silent:
    said = Silent()
    assert train(made, parts=parts, reporter=said).status == "finished"
    return said


@pytest.mark.parametrize("more", [{}, {"early_stopping": 3}, {"shuffle": False, "batch_size": 1}])
@pytest.mark.parametrize("epochs", [(2, 4), (1, 2, 4)])
def test_a_run_with_a_constant_rate_is_extended_to_the_bit(
    tmp_path: Path, epochs: tuple[int, ...], more: dict[str, Any]
) -> None:
    for n in epochs:
        said = _train(config(tmp_path, tmp_path / "run", epochs=n, **STEADY, **more))
    assert f"with {epochs[-1]} it continues exactly" in said.text
    _train(config(tmp_path, tmp_path / "calm", epochs=epochs[-1], **STEADY, **more))
    assert results(tmp_path / "run") == results(tmp_path / "calm")
    run, calm = (read_json(tmp_path / name / INFO_FILE) or {} for name in ("run", "calm"))
    assert run["losses"] == calm["losses"]
    assert run["identity"] == calm["identity"]
    again = train(config(tmp_path, tmp_path / "run", epochs=epochs[-1], **STEADY, **more), parts=PARTS)
    assert again.status == "already finished"


def test_a_run_killed_while_it_is_extended(tmp_path: Path) -> None:
    made = config(tmp_path, tmp_path / "run", epochs=2, **STEADY)
    _train(made)
    count = 0

    def kill(what: str) -> None:
        nonlocal count
        count += what == "finish"
        if count == 3:
            raise Killed

    longer = made.model_copy(update={"epochs": 4})
    with pytest.raises(Killed):
        train(longer, parts=counting_parts(kill), reporter=Silent())
    assert not (tmp_path / "run" / INFO_FILE).exists()
    _train(longer)
    _train(config(tmp_path, tmp_path / "calm", epochs=4, **STEADY))
    assert results(tmp_path / "run") == results(tmp_path / "calm")


@pytest.mark.parametrize(
    ("schedule", "epochs", "message"),
    [
        ({}, 4, "its learning rate (cosine, warm-up 0.05) would have been different in the 8 steps"),
        ({"lr_schedule": "linear", "warmup": 1}, 4, "its learning rate (linear, warm-up 1)"),
        ({"lr_schedule": "constant", "warmup": 0.25}, 4, "its learning rate (constant, warm-up 0.25)"),
        (STEADY, 1, "it has already trained 2"),
    ],
)
def test_what_would_not_be_exact_is_refused(
    tmp_path: Path, schedule: dict[str, Any], epochs: int, message: str
) -> None:
    made = config(tmp_path, tmp_path / "run", epochs=2, **schedule)
    _train(made)
    before = {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.suffix in (".json", ".safetensors")
    }
    with pytest.raises(UnresumableError) as error:
        train(made.model_copy(update={"epochs": epochs}), parts=PARTS, reporter=Silent())
    assert message in error.value.what
    assert ("--from" if epochs > 2 else "--epochs 2 keeps it; --restart") in error.value.fix
    known = {path: content for path, content in before.items() if path.name != "state.json"}
    assert all(path.read_bytes() == content for path, content in known.items())


def test_other_settings_beside_the_epochs_are_no_extension(tmp_path: Path) -> None:
    made = config(tmp_path, tmp_path / "run", epochs=2, **STEADY)
    _train(made)
    with pytest.raises(UnresumableError, match="other settings"):
        train(made.model_copy(update={"epochs": 3, "lr": 0.01}), parts=PARTS, reporter=Silent())


def _next(tmp_path: Path, parent: Path, name: str = "next", **fields: Any) -> RunConfig:
    """A run on other data that resumes from `parent`, none of whose settings are given."""
    folder = tmp_path / "new data"
    folder.mkdir(exist_ok=True)
    new, val = write_data(folder, n_train=9)
    given = {
        "train": new,
        "val": val,
        "output": tmp_path / name,
        "epochs": 2,
        "lr": 0.05,
        "grad_accum": 2,
        "threads": 1,
    }
    return RunConfig(**(given | {"quantization": "fp32", "from_adapter": parent} | fields))


def test_a_run_goes_on_from_a_run(tmp_path: Path) -> None:
    """It begins with the parent's weights, its loss with theirs; what the adapter is, the parent says."""
    parent = tmp_path / "parent"
    shape = {"lora_targets": "q_proj,down_proj", "lora_ranks": "down_proj=3", "lora_dropout": 0.0}
    _train(config(tmp_path, parent, adapter="rslora", **shape))
    digest_of_parent = sha256(parent / "adapter_model.safetensors")
    seen: list[dict[str, torch.Tensor]] = []

    def look(model: Any, examples: list[Example]) -> Any:
        if not seen:
            seen.append({name: tensor.clone() for name, tensor in model.parameters.items()})
        return PARTS.evaluate_loss(model, examples)

    said = _train(_next(tmp_path, parent), replace(PARTS, evaluate_loss=look))
    assert "Continuing from the adapter in" in said.text
    assert "new optimizer state, new learning-rate schedule" in said.text
    begun = read_adapter(parent)
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in begun.parameters.items())
    ended = read_adapter(tmp_path / "next")
    assert ended.lora == begun.lora
    assert any(not torch.equal(ended.parameters[name], tensor) for name, tensor in begun.parameters.items())
    info = read_json(tmp_path / "next" / INFO_FILE) or {}
    assert info["parent"] == {"path": str(parent), "adapter_sha256": digest_of_parent}
    assert info["identity"]["parent adapter"] == digest_of_parent[:16]
    assert info["base_model"] == "fake"
    assert sha256(parent / "adapter_model.safetensors") == digest_of_parent


def test_going_on_is_resumed_to_the_bit_and_knows_its_parent(tmp_path: Path) -> None:
    _train(config(tmp_path, tmp_path / "parent"))
    _train(config(tmp_path, tmp_path / "other", seed=7))
    _train(_next(tmp_path, tmp_path / "parent", "calm", checkpoint_minutes=0))
    count = 0

    def kill(what: str) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise Killed

    made = _next(tmp_path, tmp_path / "parent", checkpoint_minutes=0)
    with pytest.raises(Killed):
        train(made, parts=counting_parts(kill), reporter=Silent())
    assert list_checkpoints(tmp_path / "next")
    with pytest.raises(UnresumableError, match="parent adapter"):
        train(_next(tmp_path, tmp_path / "other", checkpoint_minutes=0), parts=PARTS, reporter=Silent())
    _train(made)
    assert results(tmp_path / "next") == results(tmp_path / "calm")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_r": 4}, "--lora-r 4 (it has 2)"),
        ({"adapter": "dora"}, "--adapter dora (it has lora)"),
        ({"lora_targets": "mlp"}, "--lora-targets gate_proj,up_proj,down_proj (it has q_proj,k_proj,v_proj,o_proj)"),
        ({"lora_alpha": 1.0, "lora_layers": 1}, "--lora-alpha 1 (it has 32), --lora-layers 1 (it has all)"),
        ({"lora_ranks": {"q_proj": 1}}, "--lora-ranks q_proj=1 (it has none)"),
    ],
)
def test_settings_that_contradict_the_adapter_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    _train(config(tmp_path, tmp_path / "parent"))
    with pytest.raises(RescoldoError) as error:
        train(_next(tmp_path, tmp_path / "parent", **fields), parts=PARTS, reporter=Silent())
    assert message in error.value.what
    assert not (tmp_path / "next").exists()
    _train(_next(tmp_path, tmp_path / "parent", lora_r=2, lora_alpha=32, lora_targets="attention", lora_layers=2))


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    _train(config(tmp_path, tmp_path / "parent"))
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "holds no adapter"), (tmp_path / "empty", "holds no adapter")):
        with pytest.raises(RescoldoError, match=message):
            train(_next(tmp_path, path), parts=PARTS, reporter=Silent())
    with pytest.raises(RescoldoError, match="the adapter itself that --from names"):
        train(_next(tmp_path, tmp_path / "parent", "parent"), parts=PARTS, reporter=Silent())
    info = tmp_path / "parent" / INFO_FILE
    whole = json.loads(info.read_text())
    info.write_text(json.dumps({**whole, "base_fingerprint": "0" * 64}))
    with pytest.raises(RescoldoError, match="trained on another base model"):
        train(_next(tmp_path, tmp_path / "parent"), parts=PARTS, reporter=Silent())
    info.write_text(json.dumps({**whole, "role": "of-my-own"}))
    with pytest.raises(RescoldoError, match="trained with the role 'of-my-own'"):
        train(_next(tmp_path, tmp_path / "parent"), parts=PARTS, reporter=Silent())
    info.write_text(json.dumps(whole))
    config_file = tmp_path / "parent/adapter_config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "r": 4096}))
    with pytest.raises(RescoldoError, match=r"lora_r of the adapter|does not fit"):
        train(_next(tmp_path, tmp_path / "parent"), parts=PARTS, reporter=Silent())


def test_an_adapter_given_as_base_model_is_replaced_by_its_base(tmp_path: Path) -> None:
    _train(config(tmp_path, tmp_path / "parent"))
    made, origin, said = read_origin(config(tmp_path, tmp_path / "next", base_model=str(tmp_path / "parent")))
    assert (made.base_model, origin) == ("fake", None)
    assert "holds an adapter, not a base model" in said[0]
    assert f"--from {tmp_path / 'parent'}" in said[0]


def _dataset(name: str, n: int, first: int) -> Dataset:
    examples = [Example((first + i, 1, 2), 1) for i in range(n)]
    return Dataset(Path(name), examples, [f"{name}:{i + 1}" for i in range(n)], [], digest(examples), "0" * 64)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 0.95), st.integers(0, 3))
def test_a_share_of_old_examples(new: int, old: int, share: float, seed: int) -> None:
    a, b = _dataset("new", new, 0), _dataset("old", old, 1000)
    found = mixed(a, b, share, seed)
    ours = [one for one in found.examples if one.tokens[0] >= 1000]
    wanted = max(1, round(new * share / (1 - share)))
    assert len(ours) == len({one.tokens for one in ours}) == min(old, wanted)
    assert [one for one in found.examples if one.tokens[0] < 1000] == a.examples
    assert found == mixed(a, b, share, seed)
    assert found.digest == digest(found.examples)
    assert all(
        (name.startswith("old")) == (one.tokens[0] >= 1000)
        for name, one in zip(found.names, found.examples, strict=True)
    )


def test_replay_depends_on_the_seed_and_is_part_of_the_run(tmp_path: Path) -> None:
    _train(config(tmp_path, tmp_path / "parent"))
    old = tmp_path / "train.txt"
    said = _train(_next(tmp_path, tmp_path / "parent", replay=f"{old}:0.25"))
    assert "3 old examples of 13 in" in said.text
    assert "25 % of all" in said.text
    info = read_json(tmp_path / "next" / INFO_FILE) or {}
    assert info["train_examples"] == 12
    with pytest.raises(UnresumableError, match="training examples"):
        train(_next(tmp_path, tmp_path / "parent", replay=f"{old}:0.5"), parts=PARTS, reporter=Silent())
    picked = {tuple(mixed(_dataset("a", 20, 0), _dataset("b", 20, 1000), 0.2, seed).names) for seed in range(5)}
    assert len(picked) == 5


@pytest.mark.parametrize("value", ["0.2", "old.jsonl:", "old.jsonl:0", "old.jsonl:1", "old.jsonl:x", ":0.2", "a:nan"])
def test_a_share_that_is_none(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="replay"):
        config(tmp_path, tmp_path / "run", replay=value)
