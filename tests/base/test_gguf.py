"""GGUF files: what is read equals what was written, and what transformers reads; damage gives one clear error."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from rescoldo.base import open_base
from rescoldo.base.gguf_header import TYPES, read_header
from rescoldo.base.sample import find_sample
from rescoldo.errors import RescoldoError
from tests.base.make_models import permute, tiny_gguf, tiny_hf, tiny_model
from tests.engine.common import ARCHITECTURES

torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_float32_weights_are_the_ones_written(tmp_path: Path, architecture: str, tied: bool) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", architecture, tie_word_embeddings=tied)
    base = open_base(str(path))
    state = tiny_model(architecture, tie_word_embeddings=tied).state_dict()
    assert set(base.tensors.names()) == set(state) - ({"lm_head.weight"} if tied else set())
    for name in base.tensors.names():
        assert torch.equal(base.tensors.get(name), state[name]), name
        assert base.tensors.shape(name) == tuple(state[name].shape)
        assert base.tensors.quantized(name) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_is_that_of_the_hugging_face_directory(tmp_path: Path, architecture: str) -> None:
    ours = open_base(str(tiny_gguf(tmp_path / "m.gguf", architecture))).config
    theirs = open_base(str(tiny_hf(tmp_path / "hf", architecture))).config
    assert ours.norm_eps == pytest.approx(theirs.norm_eps)
    assert replace(ours, norm_eps=theirs.norm_eps, architecture=architecture) == theirs
    assert ours.total_params == sum(p.numel() for p in tiny_model(architecture).parameters())


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights(tmp_path: Path, kind: str) -> None:
    base = open_base(str(tiny_gguf(tmp_path / "m.gguf", "llama", quantization=kind)))
    config, state = base.config, tiny_model("llama").state_dict()
    for name, stored in state.items():
        got = base.tensors.get(name)
        if stored.ndim == 1:
            assert torch.equal(got, stored)
            continue
        if kind in ("F16", "BF16"):
            assert got.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}[kind]
            assert torch.equal(got, stored.to(got.dtype)), name
            continue
        heads = config.n_heads if "q_proj" in name else config.n_kv_heads if "k_proj" in name else 0
        array = permute(stored.numpy(), heads) if heads else stored.numpy()
        ggml = gguf.GGMLQuantizationType[kind]
        blocks = gguf.quants.quantize(np.ascontiguousarray(array), ggml)
        raw = base.tensors.quantized(name)
        assert raw is not None
        assert raw.kind == kind
        assert np.array_equal(raw.data.numpy(), blocks)
        decoded = gguf.quants.dequantize(raw.data.numpy(), ggml)
        assert np.array_equal(decoded if raw.order is None else decoded[raw.order.numpy()], got.numpy()), name
        assert (got - stored).abs().max() < 0.13 * stored.abs().max(), name


@pytest.mark.parametrize("kind", sorted(kind.name for kind in gguf.quants._type_traits if kind.name != "BF16"))
def test_every_block_format_decodes_as_in_the_gguf_package(tmp_path: Path, kind: str) -> None:
    """Random blocks: enough of them that decoding goes over more than one piece."""
    from rescoldo.engine.kernels.blocks import decode_ggml

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    n = (1 << 18) // block + 3
    raw = np.random.default_rng(0).integers(0, 256, n * size, dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw.reshape(n, size), gguf.GGMLQuantizationType[kind]).reshape(-1)
        assert np.array_equal(decode_ggml(raw, kind), expected, equal_nan=True)


def test_smollm2_is_what_transformers_decodes() -> None:
    from transformers import AutoModelForCausalLM

    path = find_sample("smollm2")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    base = open_base("sample:smollm2")
    state = model.state_dict()
    del state["lm_head.weight"]
    assert set(base.tensors.names()) == set(state)
    for name, theirs in state.items():
        assert torch.equal(base.tensors.get(name), theirs), name
    config = base.config
    assert config.tied_embeddings == model.config.tie_word_embeddings
    assert config.rope_theta == model.config.rope_parameters["rope_theta"]
    assert config.total_params == model.num_parameters()


def test_header_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", "qwen2", quantization="Q8_0", metadata={"x.float": 1.5, "x.flag": True})
    header, reader = read_header(path), gguf.GGUFReader(path)
    for tensor in reader.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.type_name, ours.offset, ours.n_bytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
    for key, value in header.metadata.items():
        theirs = reader.fields[key].contents()
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == theirs, key


def test_rope_scaling_and_windows(tmp_path: Path) -> None:
    def scaling(**keys: object) -> object:
        metadata = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
        return open_base(str(tiny_gguf(tmp_path / "m.gguf", metadata=metadata))).config.rope_scaling

    assert scaling(type="none") is None
    assert scaling(type="linear", factor=4.0) == {"rope_type": "linear", "factor": 4.0}
    yarn = scaling(type="yarn", factor=4.0, original_context_length=64)
    assert yarn == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    with pytest.raises(RescoldoError, match="'longrope' is not supported"):
        scaling(type="longrope", factor=4.0)
    factors = [1.0, 1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0]
    base = open_base(str(tiny_gguf(tmp_path / "f.gguf", factors=factors)))
    assert base.config.rope_scaling == {"rope_type": "factors", "factors": factors}
    windowed = tiny_gguf(tmp_path / "w.gguf", metadata={"llama.attention.sliding_window": 32})
    assert open_base(str(windowed)).config.windows == (32, 32)


def test_llama3_factors_are_transformers_frequencies(tmp_path: Path) -> None:
    """rope_freqs.weight as llama.cpp's converter writes it for llama3 scaling divides to transformers' frequencies."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from tests.base.make_models import tiny_config

    config = tiny_config("llama", rope="llama3")
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    base = open_base(str(tiny_gguf(tmp_path / "m.gguf", factors=(plain / wanted).tolist())))
    scaling = base.config.rope_scaling
    assert scaling is not None
    assert torch.allclose(plain / torch.tensor(scaling["factors"]), wanted)


def _le(layout: str, *values: int) -> bytes:
    return struct.pack("<" + layout, *values)


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _le("Q", len(name)) + name + _le("I", kind) + value


def _tensor(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return _le("Q", len(name)) + name + _le("I", len(dims)) + _le(f"{len(dims)}Q", *dims) + _le("IQ", kind, offset)


def _file(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + _le("IQQ", version, tensors, keys) + b"".join(parts)


HUGE = (1 << 64) - 1
BROKEN = {
    "empty": (b"", "it is empty"),
    "wrong magic": (b"GGML" + bytes(100), "magic"),
    "magic only": (b"GGUF", "ends inside the header"),
    "old version": (_file(version=1), "version 1"),
    "future version": (_file(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "huge number of keys": (_file(keys=HUGE), "claims"),
    "huge number of tensors": (_file(tensors=HUGE), "claims"),
    "more keys than there are": (_file(keys=1000), "ends inside the header"),
    "huge key": (_file(_le("Q", HUGE), keys=1), "a string of"),
    "huge string": (_file(_key(b"a", 8, _le("Q", 1 << 40)), keys=1), "a string of"),
    "string past the end": (_file(_key(b"a", 8, _le("Q", 100)), keys=1), "ends inside"),
    "unknown value type": (_file(_key(b"a", 99, b""), keys=1), "unknown type 99"),
    "huge list": (_file(_key(b"a", 9, _le("IQ", 4, 1 << 60)), keys=1), "ends inside"),
    "huge list of strings": (_file(_key(b"a", 9, _le("IQ", 8, HUGE)), keys=1), "does not fit"),
    "list of lists": (_file(_key(b"a", 9, _le("IQ", 9, 2)), keys=1), "items of type 9"),
    "list of unknown": (_file(_key(b"a", 9, _le("IQ", 77, 2)), keys=1), "items of type 77"),
    "key twice": (_file(*[_key(b"a", 4, _le("I", 1))] * 2, keys=2), "repeated"),
    "key no UTF-8": (_file(_key(b"\xff\xfe", 4, _le("I", 1)), keys=1), "not UTF-8"),
    "alignment zero": (_file(_key(b"general.alignment", 4, _le("I", 0)), keys=1), "alignment"),
    "alignment odd": (_file(_key(b"general.alignment", 4, _le("I", 24)), keys=1), "alignment"),
    "five dimensions": (_file(_tensor(b"t", [1] * 5), tensors=1), "5 dimensions"),
    "no dimension": (_file(_tensor(b"t", []), tensors=1), "0 dimensions"),
    "zero dimension": (_file(_tensor(b"t", [4, 0]), tensors=1), "impossible dimensions"),
    "unknown tensor type": (_file(_tensor(b"t", [32], kind=200), tensors=1), "unknown type 200"),
    "rows that are no whole blocks": (_file(_tensor(b"t", [33], kind=2), tensors=1), "impossible dimensions"),
    "tensor past the end": (_file(_tensor(b"t", [64, 64]), bytes(64), tensors=1), "cut short"),
    "overflowing tensor": (_file(_tensor(b"t", [HUGE, HUGE, HUGE, HUGE]), tensors=1), "cut short"),
    "overflowing offset": (_file(_tensor(b"t", [4], offset=HUGE - 31), tensors=1), "cut short"),
    "offset off the grid": (_file(_tensor(b"t", [4], offset=5), bytes(99), tensors=1), "multiple of 32"),
    "tensor twice": (_file(*[_tensor(b"t", [4])] * 2, bytes(99), tensors=2), "repeated"),
    "no architecture": (_file(), "general.architecture is missing"),
    "no weights": (
        _file(_key(b"general.architecture", 8, _le("Q", 5) + b"llama"), keys=1),
        "expected a language model's weights",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_header(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(RescoldoError, match=message) as caught:
        open_base(str(path))
    assert "\n" not in caught.value.what
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "repeated|not supported"),
        ({"llama.block_count": 0}, "block_count is 0"),
        ({"llama.block_count": 4_000_000_000}, "block_count"),
        ({"llama.block_count": 3}, "model.layers.2.* is missing"),
        ({"llama.block_count": 1}, "not part of a llama decoder"),
        ({"llama.block_count": "two"}, "block_count is 'two'"),
        ({"llama.block_count": None}, "block_count is missing"),
        ({"llama.embedding_length": 128}, r"is \[288, 64\], not \[288, 128\]"),
        ({"llama.attention.head_count": 3}, "do not fit together"),
        (
            {"llama.attention.head_count_kv": [4, 2]},  # as Gemma 4 31B has it
            "architecture 'llama' with numbers of key-value heads that differ from layer to layer is not supported",
        ),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "not a positive number"),
        ({"llama.rope.freq_base": -1.0}, "not a positive number"),
        ({"llama.rope.dimension_count": 8}, "RoPE over 8 of a head's 16"),
        ({"llama.attention.value_length": 8}, "different sizes"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"split.count": 3}, "one part of a split"),
        ({"llama.attention.sliding_window": "x"}, "sliding_window"),
    ],
)
def test_impossible_metadata(tmp_path: Path, metadata: dict[str, object], message: str) -> None:
    if "general.architecture" in metadata:
        path = tiny_gguf(tmp_path / "m.gguf", "llama")
        path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0falco", 1))
        message = "'falco' is not supported(.|\n)*llama, mistral, ministral3, qwen2"
    else:
        path = tiny_gguf(tmp_path / "m.gguf", "llama", metadata=metadata)
    with pytest.raises(RescoldoError, match=message):
        open_base(str(path))


@pytest.mark.parametrize(
    ("architecture", "needs"), [("gemma3n", "an embedding for each layer"), ("gpt-oss", "attention sinks"), ("x", "")]
)
def test_what_an_architecture_lacks_is_said(tmp_path: Path, architecture: str, needs: str) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(RescoldoError, match=f"'{architecture}' is not supported.*{needs}"):
        open_base(str(tmp_path / "m.gguf"))


def test_truncated_weights(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", "llama")
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(RescoldoError, match="cut short"):
        open_base(str(path))


def test_missing_tensor_has_a_name(tmp_path: Path) -> None:
    base = open_base(str(tiny_gguf(tmp_path / "m.gguf", "llama")))
    with pytest.raises(RescoldoError, match="no tensor nonsense"):
        base.tensors.get("nonsense")
    assert set(base.config.tensor_shapes()) == set(base.tensors.names())


def test_a_value_that_the_family_refuses(tmp_path: Path) -> None:
    """Granite's metadata can say that positions are not rotated at all."""
    floats = {f"granite.{key}": 1.0 for key in ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")}
    open_base(str(tiny_gguf(tmp_path / "good.gguf", "granite", metadata=floats)))
    path = tiny_gguf(tmp_path / "bad.gguf", "granite", metadata={**floats, "granite.rope.scaling.finetuned": False})
    with pytest.raises(RescoldoError, match=r"granite\.rope\.scaling\.finetuned is False"):
        open_base(str(path))


def test_the_table_of_types_is_the_gguf_packages() -> None:
    theirs = {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert theirs == TYPES
