"""Hugging Face directories: config and weights as transformers has them; each fault gives one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rescoldo.base import open_base
from rescoldo.errors import RescoldoError
from tests.base.make_models import ROPE, tiny_hf, tiny_model
from tests.engine.common import ARCHITECTURES

torch.set_num_threads(1)

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((architecture, {}) for architecture in ARCHITECTURES),
    *((architecture, {"tie_word_embeddings": True}) for architecture in ARCHITECTURES),
    *(("llama", {"rope": rope}) for rope in ROPE),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True, "attention_bias": True}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 32}),
    ("mistral", {"sliding_window": 32}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
    ("qwen3", {"attention_bias": True, "rope": "yarn"}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0, "num_hidden_layers": 3}),
]


@pytest.mark.parametrize(("architecture", "overrides"), VARIANTS)
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_and_config(tmp_path: Path, architecture: str, overrides: dict[str, Any], sharded: bool) -> None:
    base = open_base(str(tiny_hf(tmp_path, architecture, sharded=sharded, **overrides)))
    model = tiny_model(architecture, **overrides)
    state = model.state_dict()
    if overrides.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    assert sorted(base.tensors.names()) == sorted(state)
    for name, theirs in state.items():
        assert torch.equal(base.tensors.get(name), theirs), name
    ours, config = base.config, model.config
    assert ours.total_params == model.num_parameters()
    assert ours.rope_theta == config.rope_parameters["rope_theta"]
    rope = overrides.get("rope")
    assert (ours.rope_scaling or {}).items() >= ROPE.get(rope, {}).items()
    assert (ours.rope_scaling is None) == (rope is None)
    for index in range(ours.n_layers):
        attention = model.model.layers[index].self_attn
        assert ours.window(index) == getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    assert base.gguf_file is None
    assert base.hf_config() is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_mapped_in_their_stored_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    base = open_base(str(tiny_hf(tmp_path, "llama", dtype=dtype)))
    weight = base.tensors.get("model.layers.0.mlp.up_proj.weight")
    assert weight.dtype == dtype
    assert weight.data_ptr() != base.tensors.get("model.layers.1.mlp.up_proj.weight").data_ptr()
    assert base.tensors.quantized("model.layers.0.mlp.up_proj.weight") is None


def test_older_config_with_rope_theta_and_rope_scaling(tmp_path: Path) -> None:
    tiny_hf(tmp_path, "llama")
    _edit(tmp_path, rope_parameters=None, rope_theta=500000.0, rope_scaling={**ROPE["llama3"], "type": "llama3"})
    config = open_base(str(tmp_path)).config
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == ROPE["llama3"]


def test_old_files_with_rotary_buffers_open(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_hf(tmp_path, "llama")
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(state, tmp_path / "model.safetensors")
    assert len(open_base(str(tmp_path)).tensors.names()) == len(state) - 1


def _edit(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported(.|\n)*llama, mistral, ministral3, qwen2"),
        ({"model_type": "mixtral"}, "'mixtral' is not supported: it has a mixture of experts"),
        ({"model_type": "gemma3n"}, "'gemma3n' is not supported: it has keys and values shared between layers"),
        ({"model_type": "gemma3n_text"}, "'gemma3n_text' is not supported: it has keys and values shared"),
        ({"per_layer_config": {"1": {"num_key_value_heads": 1}}}, "per_layer_config sets num_key_value_heads"),
        ({"model_type": "qwen3_5_text"}, "'qwen3_5_text' is not supported: it has layers with linear attention"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": None}, "no model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized .gptq."),
        ({"vocab_size": 289}, r"embed_tokens.weight is \[288, 64\], not \[289, 64\]"),
        ({"hidden_size": 32, "head_dim": 16}, "the weights do not fit the config"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "not part of a llama decoder"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "do not fit together"),
        ({"head_dim": 15}, "do not fit together|refuses"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": "x"}, "refuses the config|rms_norm_eps"),
        ({"attention_bias": True}, "q_proj.bias is missing"),
        ({"tie_word_embeddings": "maybe"}, "refuses the config"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}},
            "'longrope' is not supp|refuse",
        ),
        ({"rope_parameters": {"rope_type": "magic", "rope_theta": 1e4}}, "'magic' is not supported"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "needs the parameter factor|refuse"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": -2}}, "factor is -2|refuse"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0|refuse"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "part of the"),
        ({"rope_parameters": "yes"}, "refuses the config"),
        ({"rope_parameters": None, "rope_scaling": 7}, "refuses the config"),
    ],
)
def test_bad_config(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    tiny_hf(tmp_path, "llama", tokenizer=False)
    _edit(tmp_path, **values)
    with pytest.raises(RescoldoError, match=message) as caught:
        open_base(str(tmp_path))
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\xff\xfe", "null", '{"model_type": "llama"'])
def test_config_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RescoldoError, match="JSON"):
        open_base(str(tmp_path))


def test_missing_left_over_and_reshaped_tensors_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_hf(tmp_path, "llama", tokenizer=False)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.weight"]
    state["model.layers.0.mlp.gate_proj.lora_A"] = torch.zeros(3)
    state["lm_head.weight"] = torch.zeros(288, 63)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RescoldoError) as caught:
        open_base(str(tmp_path))
    for part in ("model.norm.weight is missing", "lora_A is not part", "lm_head.weight is [288, 63], not [288, 64]"):
        assert part in caught.value.what


def test_float8_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_hf(tmp_path, "llama", tokenizer=False)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RescoldoError, match=r"lm_head.weight is stored as F8_E4M3"):
        open_base(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -5000])
def test_truncated_shard(tmp_path: Path, keep: int) -> None:
    tiny_hf(tmp_path, "llama", sharded=True, tokenizer=False)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(RescoldoError, match="damaged or cut short") as caught:
        open_base(str(tmp_path))
    assert shard.name in str(caught.value)


def test_a_shard_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors writes weights for their owner alone."""
    tiny_hf(tmp_path, "llama", tokenizer=False)

    def refuse(path: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("rescoldo.base.hf.open", refuse, raising=False)  # root may read everything
    with pytest.raises(RescoldoError, match="no permission") as caught:
        open_base(str(tmp_path))
    assert caught.value.fix == f"as its owner: chmod a+r {tmp_path / 'model.safetensors'}"


def test_missing_shard(tmp_path: Path) -> None:
    tiny_hf(tmp_path, "llama", sharded=True, tokenizer=False)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(RescoldoError, match=f"1 of . weight files are missing: {shard.name}"):
        open_base(str(tmp_path))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "a file outside of the model"),
        ({"weight_map": {"a": "/etc/passwd"}}, "a file outside of the model"),
        ({"weight_map": {"a": 5}}, "a file outside of the model"),
    ],
)
def test_bad_index(tmp_path: Path, index: dict[str, Any], message: str) -> None:
    tiny_hf(tmp_path, "llama", sharded=True, tokenizer=False)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RescoldoError, match=message):
        open_base(str(tmp_path))


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    tiny_hf(tmp_path, "llama", tokenizer=False)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(RescoldoError, match="pickle") as caught:
        open_base(str(tmp_path))
    assert "save_pretrained" in caught.value.fix
    assert "\n" not in caught.value.fix


def test_no_weights(tmp_path: Path) -> None:
    tiny_hf(tmp_path, "llama", tokenizer=False)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RescoldoError, match=r"no model.safetensors"):
        open_base(str(tmp_path))


def test_config_never_runs_code(tmp_path: Path) -> None:
    tiny_hf(tmp_path, "llama")
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    _edit(tmp_path, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    base = open_base(str(tmp_path))
    assert base.config.architecture == "llama"
    assert base.tokenizer().eos_token == "<|im_end|>"


def test_rotations_by_kind_of_layer_where_there_is_one_kind(tmp_path: Path) -> None:
    """transformers ignores them there; a model that is read another way than it was trained answers nonsense."""
    path = tiny_hf(tmp_path, "llama", tokenizer=False)
    config = json.loads((path / "config.json").read_text())
    one = {"rope_type": "default", "rope_theta": 10000.0}
    config["rope_parameters"] = {"full_attention": one, "sliding_attention": one}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RescoldoError, match="one kind"):
        open_base(str(path))


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_a_decoder_wrapped_together_with_a_vision_tower(tmp_path: Path, prefix: str) -> None:
    plain = open_base(str(tiny_hf(tmp_path / "plain", "gemma3_text", rope="kinds", tokenizer=False)))
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    state = load_file(tmp_path / "plain" / "model.safetensors")
    head = "language_model.lm_head.weight" if prefix.startswith("language") else "lm_head.weight"
    state = {head if name == "lm_head.weight" else prefix + name.removeprefix("model."): t for name, t in state.items()}
    save_file({**state, "vision_tower.patch.weight": torch.zeros(3)}, wrapped / "model.safetensors")
    text = json.loads((tmp_path / "plain" / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    (wrapped / "config.json").write_text(json.dumps(config))
    base = open_base(str(wrapped))
    assert base.config == plain.config
    assert sorted(base.tensors.names()) == sorted(plain.tensors.names())
    assert all(torch.equal(base.tensors.get(name), plain.tensors.get(name)) for name in plain.tensors.names())
    save_file({**state, "audio_tower.weight": torch.zeros(3)}, wrapped / "model.safetensors")
    with pytest.raises(RescoldoError, match="audio_tower"):
        open_base(str(wrapped))
