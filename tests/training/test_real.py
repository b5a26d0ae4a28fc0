"""The loop on the real engine, data and tokenizer, with a tiny random model."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rescoldo.adapter import peft_config, read_adapter
from rescoldo.assemble import real_parts
from rescoldo.cli.main import app, run_app
from rescoldo.doctor.verify import verify
from rescoldo.engine.model import new_parameters
from rescoldo.engine.precisions import is_calibrated
from rescoldo.errors import RescoldoError
from rescoldo.export.average import average_runs
from rescoldo.models.loaded import load_for_inference
from rescoldo.role import get_role
from rescoldo.run.layout import list_checkpoints
from rescoldo.training.checkpoint import read_checkpoint
from rescoldo.training.config import RunConfig
from rescoldo.training.metrics import TensorBoard
from rescoldo.training.start import train
from tests.base.make_models import tiny_hf
from tests.engine.test_families import GEMMA4
from tests.run.common import brief_role
from tests.training.fake import Silent
from tests.training.test_resume import Killed, results


def write_records(path: Path, begin: int, end: int) -> Path:
    def items(prefix: str, i: int) -> list[dict[str, str]]:
        return [{"id": f"{prefix}001", "description": f"The {prefix} of thing {i}.", "priority": "High"}]

    rows: list[dict[str, Any]] = [
        {
            "concept": f"A thing number {i}",
            "requirements": {
                "title": f"Thing {i}",
                "description": "It does what a thing does.",
                "functional_requirements": items("FR", i),
                "non_functional_requirements": items("NFR", i),
                "constraints": items("C", i),
            },
        }
        for i in range(begin, end)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    sizes = {"max_position_embeddings": 4096, "intermediate_size": 128}
    tiny_hf(folder / "base", "llama", **sizes)
    tiny_hf(folder / "gemma4", "gemma4_text", **{**GEMMA4, "kinds": "sfsf", "num_kv_shared_layers": 2}, **sizes)
    write_records(folder / "train.jsonl", 0, 5)
    write_records(folder / "val.jsonl", 5, 7)
    brief_role(folder)
    return folder


def make(folder: Path, output: Path, **fields: Any) -> RunConfig:
    given = {"train": folder / "train.jsonl", "val": folder / "val.jsonl", "output": output}
    settings = {
        "base_model": str(folder / "base"),
        "preset": "original",
        "epochs": 2,
        "lr": 1e-3,
        "batch_size": 1,
        "grad_accum": 3,
        "lora_r": 4,
    }
    return RunConfig(**(given | settings | {"max_length": 4096, "threads": 1, "quantization": "fp32"} | fields))


DORA = {"adapter": "dora", "lora_layers": 1, "lora_ranks": "mlp=2", "lora_plus": 4, "lora_targets": "all"}


@pytest.mark.parametrize(
    ("quantization", "adapter"),
    [
        *((name, {"lora_targets": "all"}) for name in ("fp32", "bf16", "int8", "nf4")),
        ("bf16", DORA),
        ("int8", DORA),
        ("int8", {"adapter": "lora-fa", "lora_targets": "all"}),
        ("int8", {"lora_targets": "all", "base_model": "gemma4"}),
    ],
)
def test_killed_runs_end_alike(folder, tmp_path, monkeypatch, quantization, adapter):
    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))
    fields = {"quantization": quantization, **adapter, "base_model": str(folder / adapter.get("base_model", "base"))}
    fields["role"] = str(folder / "brief.yaml")
    train(make(folder, tmp_path / "calm", **fields), real_parts(), reporter=Silent())
    parts, dice, kills = real_parts(), random.Random(quantization), 0
    while True:
        left = dice.randint(1, 6)

        class Step(parts.gradient_step):  # type: ignore[misc, name-defined]
            def micro_batch(self, indices):
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return super().micro_batch(indices)

        stormy = make(folder, tmp_path / "stormy", checkpoint_minutes=dice.choice([0.0, 0.0, 5.0]), **fields)
        try:
            train(stormy, parts=replace(parts, gradient_step=Step), reporter=Silent())
            break
        except Killed:
            kills += 1
    assert kills > 1
    assert results(tmp_path / "stormy") == results(tmp_path / "calm")
    if is_calibrated(quantization):
        deleting_checkpoints_changes_nothing(tmp_path / "calm")


def deleting_checkpoints_changes_nothing(run: Path) -> None:
    """The calibration lies beside the adapter, so that a run is scored in the precision that it was trained in."""
    before = read_checkpoint(list_checkpoints(run)[0]).frozen
    for path in list_checkpoints(run):
        shutil.rmtree(path)
    loaded = load_for_inference(str(run))
    assert loaded.precision == json.loads((run / "training_info.json").read_text())["quantization"]
    after = loaded.model.frozen_state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert next(check for check in verify(run) if check.name == "hashes").ok


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> tuple[Path, str]:
    output, reporter = tmp_path_factory.mktemp("out") / "run", Silent()
    train(make(folder, output, lora_targets="all"), real_parts(), adapter_bin=True, reporter=reporter)
    return output, reporter.text


def test_messages_in_the_contracts_order(folder, finished):
    expected = [
        "Fine-Tuning LoRA - base",
        f"Loading tokenizer from {folder / 'base'}",
        f"Loading model {folder / 'base'}",
        "Applying LoRA configuration (r=4, alpha=32)...",
        "Tokenizing datasets...",
        "Starting training...",
        "Epoch 1/2: 5/5 100%",
        "Evaluating: 2/2 100%",
        "Epoch 2/2: 5/5 100%",
        "Evaluating: 2/2 100%",
        f"Saving LoRA adapters to {finished[0]}",
        "✅ Fine-tuning completed!",
    ]
    lines = iter(finished[1].splitlines())
    for message in expected:
        assert any(line.startswith(message) for line in lines), message


def test_what_a_run_leaves(finished):
    output = finished[0]
    names = {path.name for path in output.iterdir()}
    assert {"checkpoint-5", "checkpoint-10", "logs", "adapter_model.bin", "special_tokens_map.json"} <= names
    assert list((output / "logs").glob("events.out.tfevents*"))
    info = json.loads((output / "training_info.json").read_text())
    assert (info["train_examples"], info["val_examples"], info["effective_batch_size"]) == (5, 2, 3)
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3, 4]
    for check in verify(output):
        assert check.ok, check


def test_peft_loads_it_and_gives_the_same_loss(folder, finished):
    its_loss_is_pefts(folder, finished[0])


def test_a_run_that_trains_b_alone(folder, tmp_path):
    """A is what it was at first, the adapter is LoRA for whoever reads it, and a run that goes on trains B alone, too,
    unless it is told otherwise."""
    train(make(folder, tmp_path / "run", adapter="lora-fa", epochs=1), real_parts())
    info = json.loads((tmp_path / "run/training_info.json").read_text())
    found = read_adapter(tmp_path / "run")
    assert found.lora.kind == "lora"
    assert info["trainable_params"] == sum(p.numel() for name, p in found.parameters.items() if name.endswith("lora_B"))
    assert all(check.ok for check in verify(tmp_path / "run"))
    its_loss_is_pefts(folder, tmp_path / "run")
    fresh = new_parameters(real_parts().open_base(info["base_model"]).config, found.lora, info["seed"])
    same = {name for name, tensor in found.parameters.items() if torch.equal(tensor, fresh[name])}
    assert same == {name for name in fresh if name.endswith("lora_A")}
    given = make(folder, tmp_path).model_dump(include={"train", "val", "max_length"})
    more = {**given, "epochs": 1, "from_adapter": tmp_path / "run", "quantization": "fp32", "threads": 1, "lr": 1e-3}
    for name, fields, kept in (("on", {}, True), ("whole", {"adapter": "lora"}, False)):
        train(RunConfig(**more, output=tmp_path / name, **fields), real_parts())
        after = read_adapter(tmp_path / name).parameters
        assert all(torch.equal(after[one], fresh[one]) is kept for one in same)
        assert all(check.ok for check in verify(tmp_path / name))


def test_going_on_from_an_adapter_that_peft_made(folder, tmp_path):
    """Its kind and ranks are kept, the loss before the training is PEFT's, and PEFT loads the result."""
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    options = {"r": 3, "rank_pattern": {"v_proj": 2}, "target_modules": ["q_proj", "v_proj"], "use_dora": True}
    theirs = peft.get_peft_model(base, peft.LoraConfig(**options, lora_alpha=7, layers_to_transform=[1]))
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 1.0 if "magnitude" in name else 0.0, 0.2)
    theirs.save_pretrained(tmp_path / "parent")
    given = make(folder, tmp_path / "run").model_dump(include={"train", "val", "output", "epochs", "max_length"})
    train(RunConfig(**given, from_adapter=tmp_path / "parent", quantization="fp32", threads=1, lr=1e-3), real_parts())
    info = json.loads((tmp_path / "run/training_info.json").read_text())
    assert (info["base_model"], info["lora_r"], info["lora_alpha"]) == (str(folder / "base"), 3, 7.0)
    assert read_adapter(tmp_path / "run").lora == read_adapter(tmp_path / "parent").lora
    assert mean_loss(folder, theirs.eval()) == pytest.approx(info["val_loss_before"], abs=1e-4)
    its_loss_is_pefts(folder, tmp_path / "run")


def its_loss_is_pefts(folder: Path, output: Path) -> None:
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    info = json.loads((output / "training_info.json").read_text())
    best = info["losses"][info["best_epoch"] - 1]["val_loss"]
    assert mean_loss(folder, peft.PeftModel.from_pretrained(base, output).eval()) == pytest.approx(best, abs=1e-4)


def mean_loss(folder: Path, model: Any) -> float:
    """Of a model of transformers, over the validation examples' targets."""
    parts, config = real_parts(), make(folder, folder)
    opened = parts.open_base(config.base_model)
    data = parts.read_dataset(config.val, get_role("ba"), opened.tokenizer(), 4096, None)
    nats, targets = 0.0, 0
    for example in data.examples:
        tokens = torch.tensor(example.tokens)
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, example.n_prompt - 1 : -1]
        nats += torch.nn.functional.cross_entropy(logits, tokens[example.n_prompt :], reduction="sum").item()
        targets += example.n_targets
    assert targets == sum(example.n_targets for example in data.examples)
    return nats / targets


def test_an_average_of_epochs(finished, tmp_path):
    epochs = [finished[0] / "checkpoint-5", finished[0] / "checkpoint-10"]
    average_runs(epochs, tmp_path / "epochs", weights=[1, 3], method="factors")
    first, second = (read_checkpoint(path).adapter for path in epochs)
    found = read_adapter(tmp_path / "epochs")
    assert found.lora == read_adapter(finished[0]).lora
    for name, tensor in found.parameters.items():
        torch.testing.assert_close(tensor, 0.25 * first[name] + 0.75 * second[name])
    assert all(check.ok for check in verify(tmp_path / "epochs"))
    damaged = shutil.copytree(epochs[0], tmp_path / "run" / "checkpoint-5")
    shutil.copy(finished[0] / "adapter_config.json", tmp_path / "run")
    shutil.copy(finished[0] / "adapter_model.safetensors", tmp_path / "run")
    (damaged / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(RescoldoError, match="the checkpoint is damaged"):
        average_runs([damaged, epochs[1]], tmp_path / "none")


def test_adapter_config_is_what_peft_would_write(finished, tmp_path):
    peft = pytest.importorskip("peft")
    lora = read_adapter(finished[0]).lora
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(lora, "base")))
    ours = peft.PeftConfig.from_pretrained(tmp_path).to_dict()
    theirs = peft.LoraConfig(
        r=4,
        lora_alpha=32,
        lora_dropout=0.1,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path="base",
        inference_mode=True,
    ).to_dict()
    differing = {key for key in theirs if ours.get(key) != theirs[key]} - {"peft_version"}
    assert not differing


def damage_info(output: Path, **fields: Any) -> None:
    path = output / "training_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def damage_weights(output: Path, change: Any) -> None:
    import safetensors.torch

    path = output / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(str(path))
    safetensors.torch.save_file(change(tensors), str(path), metadata={"format": "pt"})


def first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(key for key in tensors if part in key)


DAMAGE = [
    ("files", lambda out: (out / "tokenizer.json").unlink()),
    ("training_info", lambda out: (out / "training_info.json").write_text("{")),
    (
        "training_info",
        lambda out: damage_info(out, files={}) or (out / "training_info.json").write_text('{"lora_r": 4}'),
    ),
    ("hashes", lambda out: (out / "tokenizer.json").write_text("{}")),
    ("hashes", lambda out: damage_info(out, files={"../../etc/passwd": "0", "adapter_model.safetensors": "1"})),
    ("adapter", lambda out: (out / "adapter_model.safetensors").write_bytes(b"\xff" * 100)),
    ("adapter", lambda out: (out / "adapter_config.json").write_text("[]")),
    ("adapter", lambda out: damage_info(out, lora_r=8)),
    ("shapes", lambda out: damage_weights(out, lambda t: t | {first(t, "lora_A"): torch.ones(4, 3)})),
    ("shapes", lambda out: damage_weights(out, lambda t: {k: v for k, v in t.items() if "layers.1" not in k})),
    ("shapes", lambda out: damage_info(out, base_fingerprint="0")),
    ("finite", lambda out: damage_weights(out, lambda t: t | {(k := first(t, "lora_A")): t[k] / 0})),
    ("trained", lambda out: damage_weights(out, lambda t: t | {(k := first(t, "lora_B")): t[k] * 0})),
    ("parameters", lambda out: damage_info(out, trainable_params=1)),
    ("adapter_model.bin", lambda out: (out / "adapter_model.bin").write_bytes(b"\x80")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_verify_finds_the_damage(finished, tmp_path, capsys, monkeypatch, name, damage):
    import shutil

    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    damage(output)
    monkeypatch.setattr("sys.argv", ["rescoldo", "verify", str(output), "--json"])
    assert run_app(app) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert name in {check["name"] for check in document["checks"] if not check["ok"]}


def test_verify_without_the_base_model_uses_the_noted_shapes(finished, tmp_path):
    import shutil

    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    damage_info(output, base_model=str(tmp_path / "gone"))
    checks = {check.name: check for check in verify(output)}
    assert checks["shapes"].ok
    assert "is not here" in checks["shapes"].detail


def test_command_line_from_start_to_finish(folder, tmp_path, capsys, monkeypatch):
    """Flags win over the file; --json prints one document; a second call finds the run finished; verify agrees."""
    file = tmp_path / "run.yaml"
    file.write_text(
        "epochs: 7\nlr: 2e-3\nlora_targets: [q_proj, v_proj]\nmax_length: 4096\nthreads: 1\ngrad_accum: 2\n"
    )
    out = tmp_path / "run"
    flags = [
        "--train",
        folder / "train.jsonl",
        "--val",
        folder / "val.jsonl",
        "--output",
        out,
        "--base-model",
        folder / "base",
    ]
    flags += ["--config", file, "--epochs", "1", "--lora-r", "2", "--quantization", "fp32", "--json"]
    for status in ("finished", "already finished"):
        monkeypatch.setattr("sys.argv", ["rescoldo", "train", *map(str, flags)])
        assert run_app(app) == 0
        captured = capsys.readouterr()
        summary = json.loads(captured.out)
        assert summary["status"] == status
        assert (summary["info"]["epochs"], summary["info"]["learning_rate"], summary["info"]["lora_r"]) == (1, 2e-3, 2)
        assert summary["info"]["lora_targets"] == ["q_proj", "v_proj"]
        assert captured.err.startswith("Fine-Tuning LoRA - ")
    monkeypatch.setattr("sys.argv", ["rescoldo", "verify", str(out)])
    assert run_app(app) == 0
    assert "❌" not in capsys.readouterr().out
