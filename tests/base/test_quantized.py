"""Quantized checkpoints: decoded as bitsandbytes and transformers decode them, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rescoldo.base import open_base
from rescoldo.base.quantized import Quantization, Quantized, read_quantization
from rescoldo.engine.model import LoraModel
from rescoldo.errors import RescoldoError
from tests.base.make_models import tiny_hf

# made by bitsandbytes 0.50.2: quantize_4bit (nf4, fp4, each with and without nested scales) and int8_vectorwise_quant
BITSANDBYTES = load_file(Path(__file__).parent / "data/bitsandbytes.tensors")
EXPECTED = [name.removesuffix(".expected") for name in BITSANDBYTES if name.endswith(".expected")]
LINEAR = "model.layers.0.mlp.down_proj"
HEAD = "lm_head.weight"


def _edit(path: Path, **fields: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))


def _taken(names: list[str]) -> Quantized:
    found = Quantized(Quantization("bitsandbytes"), BITSANDBYTES.__getitem__, "here")
    for name in names:
        found.take(name)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_bitsandbytes_formats_give_its_own_numbers(name: str) -> None:
    names = [one for one in BITSANDBYTES if one.startswith(f"{name}.") and not one.endswith((".expected", ".weight"))]
    quantized, expected = _taken(names), BITSANDBYTES[f"{name}.expected"]
    stored = BITSANDBYTES[f"{name}.weight"]
    assert quantized.decodes(f"{name}.weight")
    assert quantized.shape(f"{name}.weight", tuple(stored.shape)) == tuple(expected.shape)
    found = quantized.decode(f"{name}.weight", stored)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected) or (name == "int8" and torch.allclose(found, expected, rtol=1e-6, atol=0))
    assert len(EXPECTED) == 7


def test_damaged_parts_of_a_four_bit_matrix_are_refused() -> None:
    name = "nf4_nested_bfloat16"
    for part in ("absmax", "quant_map", "nested_quant_map", "quant_state.bitsandbytes__nf4"):
        tensors = {**BITSANDBYTES, f"{name}.weight.{part}": BITSANDBYTES[f"{name}.weight.{part}"][:5].clone()}
        quantized = Quantized(Quantization("bitsandbytes"), tensors.__getitem__, "here")
        for one in tensors:
            quantized.take(one)
        with pytest.raises(RescoldoError, match="cannot be decoded"):
            quantized.decode(f"{name}.weight", tensors[f"{name}.weight"])


def fp8_model(path: Path, scale_shape: str, scale_name: str, **overrides: Any) -> dict[str, torch.Tensor]:
    """A tiny llama whose linears are stored in FP8; returns what its tensors stand for."""
    tiny_hf(path, "llama", intermediate_size=192, **overrides)
    state = load_file(path / "model.safetensors")
    stored, meant = {}, {}
    for name, w in state.items():
        if not name.endswith("_proj.weight"):
            stored[name] = meant[name] = w
            continue
        rows, columns = w.shape
        if scale_shape == "block":
            tiles = w.view(rows // 32, 32, columns // 32, 32)
            scale = tiles.abs().amax((1, 3)) / 448
            wide = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
        else:
            scale = w.abs().amax(1, keepdim=True) / 448 if scale_shape == "row" else w.abs().max() / 448
            wide = scale
        stored[name] = (w / wide).to(torch.float8_e4m3fn)
        stored[name.replace("weight", scale_name)] = scale
        if scale_shape == "one":
            stored[name.replace("weight", "activation_scale")] = torch.tensor(0.5)
        meant[name] = stored[name].float() * wide
    save_file(stored, path / "model.safetensors")
    return meant


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}


@pytest.mark.parametrize(
    ("scale_shape", "scale_name", "config"),
    [
        ("one", "weight_scale_inv", {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}),
        ("block", "weight_scale_inv", {"quant_method": "fp8", "weight_block_size": [32, 32]}),
        ("row", "weight_scale", COMPRESSED),
        ("row", "weight_scale", {"quant_method": "fbgemm_fp8"}),
    ],
)
def test_fp8(tmp_path: Path, scale_shape: str, scale_name: str, config: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    meant = fp8_model(tmp_path, scale_shape, scale_name)
    _edit(tmp_path, quantization_config=config)
    base = open_base(str(tmp_path))
    assert all(torch.equal(base.tensors.get(name), tensor) for name, tensor in meant.items())
    assert base.tensors.decoded(f"{LINEAR}.weight")
    tokens = torch.arange(30)
    ours = LoraModel.load(base, "fp32", None, seed=0).logits(tokens)
    if config["quant_method"] == "fp8":
        from transformers import FineGrainedFP8Config

        how = FineGrainedFP8Config(dequantize=True, weight_block_size=config["weight_block_size"])
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=how)
        with torch.no_grad():
            torch.testing.assert_close(ours, theirs(tokens[None]).logits[0], rtol=1e-4, atol=1e-4)


def test_a_directory_in_nf4(tmp_path: Path) -> None:
    tiny_hf(tmp_path, "llama", tokenizer=False)
    state = load_file(tmp_path / "model.safetensors")
    rows, columns = state.pop(f"{LINEAR}.weight").shape
    codes = torch.randint(0, 16, (rows * columns,), generator=torch.Generator().manual_seed(0))
    absmax, levels = torch.rand(rows * columns // 64) + 0.5, BITSANDBYTES["nf4_bfloat16.weight.quant_map"]
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [rows, columns]}
    state |= {
        f"{LINEAR}.weight": (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
        f"{LINEAR}.weight.absmax": absmax,
        f"{LINEAR}.weight.quant_map": levels,
        f"{LINEAR}.weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(said).encode()), dtype=torch.uint8
        ),
    }
    save_file(state, tmp_path / "model.safetensors")
    _edit(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    found = open_base(str(tmp_path)).tensors.get(f"{LINEAR}.weight").flatten()
    expected = [float(levels[code]) * float(absmax[i // 64]) for i, code in enumerate(codes.tolist())]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_float8_without_a_scale_and_scales_that_do_not_fit(tmp_path: Path) -> None:
    fp8_model(tmp_path, "block", "weight_scale_inv")
    _edit(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]})
    with pytest.raises(RescoldoError, match="do not fit a matrix"):
        open_base(str(tmp_path)).tensors.get(f"{LINEAR}.weight")
    _edit(tmp_path, quantization_config=None)
    with pytest.raises(RescoldoError, match=r"config\.json does not say of which kind"):
        open_base(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "aqlm"),
        ({"quantization_config": {"quant_method": "eetq"}}, "eetq"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, "pack-quantized"),
        ({"text_config": {"quantization_config": {"quant_method": "hqq"}}}, "hqq"),
        ({"quantization_config": "x"}, "x"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    tiny_hf(tmp_path, "llama", tokenizer=False)
    _edit(tmp_path, **config)
    with pytest.raises(RescoldoError, match=rf"quantized \(.*{said}") as caught:
        open_base(str(tmp_path))
    assert "GGUF" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["qweight", "qzeros", "scales", "g_idx"], "GPTQ"),
        (["qweight", "qzeros", "scales"], "AWQ"),
        (["weight", "scales", "biases"], "MLX|does not say"),
        (["weight_packed", "weight_scale"], "packed|does not say"),
        (["codebooks", "codes", "scales"], "AQLM|does not say"),
        (["weight", "weight_scales"], "EETQ"),
        (["weight", "SCB"], "does not say"),
    ],
)
def test_tensors_of_other_methods_are_refused_without_a_config_that_says_so(
    tmp_path: Path, names: list[str], said: str
) -> None:
    tiny_hf(tmp_path, "llama", tokenizer=False)
    state = load_file(tmp_path / "model.safetensors")
    weight = state.pop(f"{LINEAR}.weight")
    for name in names:
        state[f"{LINEAR}.{name}"] = weight.clone() if name == "weight" else torch.zeros(4, 4, dtype=torch.int32)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RescoldoError, match=said):
        open_base(str(tmp_path))


def test_what_is_not_quantized() -> None:
    assert read_quantization({}, "here") is None
    assert read_quantization({"quantization_config": {}}, "here") is None
