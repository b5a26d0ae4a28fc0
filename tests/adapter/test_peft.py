"""Adapters as PEFT writes them: the plain ones are read and give PEFT's logits, every other kind is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rescoldo.adapter import read_adapter, read_calibration, write_calibration
from rescoldo.adapter.peft import _FIELDS, parse_config
from rescoldo.engine.types import LoraConfig
from rescoldo.errors import RescoldoError
from rescoldo.export import export_run
from rescoldo.models.loaded import load_for_inference
from tests.base.make_models import tiny_hf


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("base"), "llama", max_position_embeddings=512, num_hidden_layers=3)


def save(base: Path, folder: Path, **options: Any) -> Any:
    """A PEFT model with random adapter weights, saved by PEFT; returns the model."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **options}
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**given))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
            if "lora_magnitude_vector" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(folder)
    return model.eval()


KINDS: dict[str, dict[str, Any]] = {
    "target_modules": {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6]},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj"]},
    "bias": {"bias": "lora_only"},
    "rank_pattern": {"rank_pattern": {"layers.0.self_attn.q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 2}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "layer_replication": {"layer_replication": [(0, 2), (1, 3)]},
    "exclude_modules": {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
}


OTHERS: list[dict[str, Any]] = [
    {"use_rslora": True},
    {"use_dora": True},
    {"use_dora": True, "use_rslora": True, "layers_to_transform": [0, 2]},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    {"rank_pattern": {"down_proj": 9}, "use_rslora": True, "layers_to_transform": [1]},
    {"target_modules": [f"model.layers.{n}.{name}" for n in (0, 2) for name in ("self_attn.q_proj", "mlp.up_proj")]},
]


@pytest.mark.parametrize("field", KINDS)
def test_other_kinds_are_refused_by_name(base: Path, tmp_path: Path, field: str) -> None:
    """By whatever reads an adapter: inference (chat, eval, serve) and export."""
    save(base, tmp_path / "a", **KINDS[field])
    for read in (
        read_adapter,
        lambda path: load_for_inference(str(path)),
        lambda path: export_run(path, "gguf-adapter"),
    ):
        with pytest.raises(RescoldoError, match=rf"not supported: (.*; )?{field} is ") as error:
            read(tmp_path / "a")
        assert error.value.where.endswith("adapter_config.json")
    assert not (tmp_path / "a/export").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"some_new_option": True}, "some_new_option is true, expected not set"),
        ({"some_new_option": {"a": 1}, "use_dora": True}, 'some_new_option is {"a": 1}, expected not set'),
        ({"peft_type": "LOHA"}, "peft_type is \"LOHA\", expected 'LORA'"),
        ({"task_type": "SEQ_CLS"}, "task_type is"),
        ({"revision": "v2"}, "revision is"),
        ({"layers_pattern": "blocks"}, "layers_pattern is"),
        ({"r": True}, "r is true"),
        ({"r": 0}, "r is 0, expected a whole number from 1"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"lora_alpha": float("inf")}, "lora_alpha is Infinity, expected a number"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"target_modules": [["q_proj"]]}, "target_modules is"),
        ({"target_modules": "all-linear"}, "expected a list of q_proj, "),
        ({"layers_to_transform": [-1]}, "layers_to_transform is"),
        ({"layers_to_transform": [0, 3]}, "names layer 3, and the model has 3 layers"),
        ({"layers_to_transform": 1}, "model.layers.0.mlp.down_proj.lora_A is not part of the model, and 7 more are"),
        ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, "v_proj.lora_A is missing, and 5 more are"),
        ({"r": 5}, "of another shape, and 11 more are: [4, 96], expected [5, 96]"),
    ],
)
def test_fields_that_do_not_fit(base: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(base, tmp_path / "a")
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RescoldoError) as error:
        load_for_inference(str(tmp_path / "a"))
    assert message in error.value.what


def test_a_missing_field_is_named(base: Path, tmp_path: Path) -> None:
    save(base, tmp_path / "a")
    path = tmp_path / "a/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in ("r", "peft_type")}))
    with pytest.raises(RescoldoError, match="lacks peft_type, r"):
        read_adapter(tmp_path / "a")


def test_every_field_of_this_pefts_default_config_is_accepted() -> None:
    """A field that is new in PEFT with a default that is not empty shows here."""
    import peft

    config = {**peft.LoraConfig(target_modules=["q_proj"]).to_dict(), "peft_type": "LORA", "target_modules": ["q_proj"]}
    assert parse_config(json.loads(json.dumps(config)), "here") == LoraConfig(8, 8.0, 0.0, ("q_proj",))
    assert not {name for name in _FIELDS if name not in config} - {"merge_weights"}


@pytest.mark.parametrize(
    "options",
    [{}, {"layers_to_transform": [1]}, {"layers_to_transform": 2, "layers_pattern": "layers"},
     {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}, *OTHERS],
)  # fmt: skip
def test_each_kind_gives_pefts_logits(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = save(base, tmp_path / "a", **options)
    tokens = torch.arange(3, 40)
    mine = load_for_inference(str(tmp_path / "a"), "fp32").model.logits(tokens)
    with torch.no_grad():
        torch.testing.assert_close(mine, theirs(tokens[None]).logits[0], atol=1e-4, rtol=1e-4)


def test_an_adapter_of_some_layers_exports_and_merges(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from rescoldo.base.gguf_header import read_header

    theirs = save(base, tmp_path / "a", layers_to_transform=[0, 2])
    export_run(tmp_path / "a", "gguf-adapter")
    names = read_header(tmp_path / "a/export/gguf-adapter/adapter-F32.gguf").tensors
    assert {name.split(".")[1] for name in names} == {"0", "2"}
    export_run(tmp_path / "a", "merged", dtype="F32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "a/export/merged")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_weights_that_are_not_what_the_config_says(base: Path, tmp_path: Path) -> None:
    save(base, tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    whole = load_file(path)
    first = min(whole)

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, path)
        with pytest.raises(RescoldoError, match=message):
            load_for_inference(str(tmp_path / "a"))

    magnitude = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    refused({**whole, magnitude: torch.ones(64)}, "lora_magnitude_vector is not a LoRA weight")
    refused({**whole, first: whole[first].to(torch.int32)}, "is not a LoRA weight")
    refused({**whole, first: whole[first] * float("nan")}, "contains NaN or Inf")
    refused({name: tensor for name, tensor in whole.items() if name != first}, r"is missing \(of 12")


def test_the_calibration_beside_an_adapter(tmp_path: Path) -> None:
    ranges = {"layers.0.qkv": torch.rand(64), "head": torch.rand(64)}
    assert read_calibration(tmp_path) is None
    assert write_calibration(tmp_path, ranges)
    found = read_calibration(tmp_path)
    assert found is not None
    assert found.keys() == ranges.keys()
    assert all(torch.equal(found[name], ranges[name]) for name in ranges)
    (tmp_path / "calibration.safetensors").write_bytes(b"no")
    with pytest.raises(RescoldoError, match="cannot be read"):
        read_calibration(tmp_path)
    assert not write_calibration(tmp_path, {})
    assert not list(tmp_path.iterdir())
