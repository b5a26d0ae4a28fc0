"""Well-formed GGUF files that say impossible things: any metadata key with any value, tensors that are gone,
renamed, turned or of another type. A RescoldoError or a model that can be used, in bounded time; nothing else."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescoldo.base import open_base
from rescoldo.base.gguf_header import GgufHeader, read_header
from rescoldo.data.tokenize import prompt_ids, stop_ids
from rescoldo.errors import RescoldoError
from tests.base.make_models import CHATML, tiny_gguf

FUZZ = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
KINDS = GGUFValueType
SPM = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "ab", "▁a", "▁ab"],
    "types": [2, 3, 3, *[6] * 256, *[1] * 6],
    "scores": [0.0] * 259 + [-3.0, -4.0, -5.0, -1.0, -2.0, 0.0],
}
Value = tuple[Any, GGUFValueType, GGUFValueType | None]


@cache
def _source(folder: Path, family: str) -> tuple[GgufHeader, bytes]:
    vocabulary: dict[str, Any] = (
        {"vocabulary": SPM, "vocab_size": len(SPM["tokens"]), "template": CHATML} if family == "llama" else {}
    )
    keys = {"general.name": "tiny", "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    path = tiny_gguf(folder / f"{family}.gguf", num_hidden_layers=1, metadata=keys, **vocabulary)
    return read_header(path), path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def _write(path: Path, metadata: dict[str, Value], tensors: list[tuple[str, tuple[int, ...], str, bytes]]) -> None:
    writer = GGUFWriter(str(path), "llama")
    writer.kv_data[0].clear()
    for key, (value, kind, item) in metadata.items():
        writer.add_key_value(key, value, kind, item)
    for name, shape, type_name, data in tensors:
        array = np.frombuffer(data, np.uint8).reshape(*shape[:-1], -1)
        writer.add_tensor(name, array, raw_dtype=GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _use(path: Path) -> None:
    """Open it and do with it what a run would do."""
    started, message = time.perf_counter(), ""
    try:
        base = open_base(str(path))
        for name in base.tensors.names():
            base.tensors.get(name)
        tokenizer = base.tokenizer()
        tokenizer.decode(prompt_ids([{"role": "user", "content": "a the 12 ñ 漢"}], tokenizer))
        stop_ids(tokenizer)
    except RescoldoError as error:
        message = error.what
    assert len(message) < 2000
    assert time.perf_counter() - started < 10


INTEGERS = st.sampled_from([0, 1, 2, 3, 7, 255, 288, 1 << 16, (1 << 31) - 1, (1 << 32) - 1])
VALUES: st.SearchStrategy[Value] = st.one_of(
    INTEGERS.map(lambda n: (n, KINDS.UINT32, None)),
    st.sampled_from([-1, -(1 << 31), 1 << 62]).map(lambda n: (n, KINDS.INT64, None)),
    st.just(((1 << 64) - 1, KINDS.UINT64, None)),
    st.sampled_from([0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")]).map(lambda x: (x, KINDS.FLOAT32, None)),
    st.booleans().map(lambda b: (b, KINDS.BOOL, None)),
    (st.text(max_size=30) | st.sampled_from(["llama", "qwen3", "gpt2", "yarn", "{{ 1/0 }}", "{% for %}"])).map(
        lambda text: (text, KINDS.STRING, None)
    ),
    st.lists(st.text(max_size=4), min_size=1, max_size=300).map(lambda v: (v, KINDS.ARRAY, KINDS.STRING)),
    st.lists(st.integers(-5, 300), min_size=1, max_size=300).map(lambda v: (v, KINDS.ARRAY, KINDS.INT32)),
    st.lists(st.floats(width=32), min_size=1, max_size=300).map(lambda v: (v, KINDS.ARRAY, KINDS.FLOAT32)),
    st.lists(st.booleans(), min_size=1, max_size=8).map(lambda v: (v, KINDS.ARRAY, KINDS.BOOL)),
)


def _metadata(header: GgufHeader) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, value in header.metadata.items():
        kind, item = header.types[key]
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        found[key] = (plain, KINDS(kind), None if item is None else KINDS(item))
    return found


def _tensors(header: GgufHeader, content: bytes) -> list[tuple[str, tuple[int, ...], str, bytes]]:
    return [
        (name, info.shape, info.type_name, content[info.offset : info.offset + info.n_bytes])
        for name, info in header.tensors.items()
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@FUZZ
@given(data=st.data())
def test_metadata_of_any_kind(folder: Path, tmp_path: Path, family: str, data: st.DataObject) -> None:
    """One to three keys replaced, left out, or cut."""
    header, content = _source(folder, family)
    metadata = _metadata(header)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(metadata)))
        value, kind, item = metadata[key]
        how = data.draw(st.sampled_from(["replace", "replace", "leave out", "cut", "swap"]))
        if how == "leave out" and len(metadata) > 1:
            del metadata[key]
        elif how == "cut" and isinstance(value, list) and len(value) > 1:
            metadata[key] = (value[: data.draw(st.integers(1, len(value) - 1))], kind, item)
        elif how == "swap" and isinstance(value, list) and value:
            changed = list(value)
            at, other = (data.draw(st.integers(0, len(value) - 1)) for _ in range(2))
            changed[at] = changed[other]
            metadata[key] = (changed, kind, item)
        else:
            metadata[key] = data.draw(VALUES)
    _write(tmp_path / "m.gguf", metadata, _tensors(header, content))
    _use(tmp_path / "m.gguf")


@FUZZ
@given(data=st.data())
def test_tensors_of_any_kind(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Left out, renamed, turned, or said to be of another type."""
    header, content = _source(folder, "gpt2")
    tensors = _tensors(header, content)
    index = data.draw(st.integers(0, len(tensors) - 1))
    name, shape, type_name, raw = tensors[index]
    how = data.draw(st.sampled_from(["leave out", "rename", "turn", "type", "numbers"]))
    if how == "leave out":
        del tensors[index]
    elif how == "rename":
        others = [one[0] for one in tensors]
        new = data.draw(
            st.text(min_size=1, max_size=20) | st.sampled_from(["blk.0.attn_q.bias", "blk.99.attn_q.weight"])
        )
        tensors[index] = (new if new not in others else name, shape, type_name, raw)
    elif how == "turn":
        tensors[index] = (name, shape[::-1], type_name, raw)
    elif how == "type":
        other = data.draw(st.sampled_from(["I32", "F16", "BF16", "I8"]))
        tensors[index] = (name, shape, other, raw)
    else:
        odd = np.frombuffer(raw, "<f4").copy()
        odd[data.draw(st.integers(0, odd.size - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        tensors[index] = (name, shape, type_name, odd.tobytes())
    _write(tmp_path / "m.gguf", _metadata(header), tensors)
    _use(tmp_path / "m.gguf")


def test_the_untouched_file_can_be_used(folder: Path, tmp_path: Path) -> None:
    """The fuzz begins from files that work: else it would test nothing."""
    for family in ("gpt2", "llama"):
        header, content = _source(folder, family)
        _write(tmp_path / "m.gguf", _metadata(header), _tensors(header, content))
        base = open_base(str(tmp_path / "m.gguf"))
        assert prompt_ids([{"role": "user", "content": "ab"}], base.tokenizer())
