"""Damaged GGUF files of every kind: a RescoldoError or a model, in bounded time; nothing else."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescoldo.base import open_base
from rescoldo.errors import RescoldoError
from tests.base.make_models import tiny_gguf

FUZZ = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


@cache
def _good(folder: Path) -> bytes:
    return tiny_gguf(folder / "good.gguf", "llama", quantization="Q4_0", num_hidden_layers=1).read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _good(tmp_path_factory.mktemp("fuzz"))


def _try(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    start, message = time.perf_counter(), ""
    try:
        base = open_base(str(path))
        for name in base.tensors.names():
            base.tensors.get(name)
        base.tokenizer()
    except RescoldoError as error:
        message = error.what
    assert "\n" not in message
    assert len(message) < 2000
    assert time.perf_counter() - start < 10


@FUZZ
@given(data=st.data())
def test_flipped_bytes(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    """Up to eight bytes of the header or anywhere, replaced."""
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 16000) | st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    _try(tmp_path / "m.gguf", bytes(content))


@FUZZ
@given(length=st.integers(0, 20000))
def test_truncated_anywhere(tmp_path: Path, good: bytes, length: int) -> None:
    _try(tmp_path / "m.gguf", good[:length])


@FUZZ
@given(data=st.data())
def test_huge_numbers(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    """Any eight bytes become a large number: counts, lengths, dimensions, offsets."""
    content = bytearray(good)
    at = data.draw(st.integers(4, 16000))
    number = data.draw(st.sampled_from([(1 << 64) - 1, 1 << 63, 1 << 40, 1 << 32, (1 << 31) - 1, 1 << 24, 0]))
    content[at : at + 8] = number.to_bytes(8, "little")
    _try(tmp_path / "m.gguf", bytes(content))


@FUZZ
@given(tail=st.binary(max_size=400), version=st.sampled_from([2, 3]))
def test_random_after_the_magic(tmp_path: Path, tail: bytes, version: int) -> None:
    _try(tmp_path / "m.gguf", b"GGUF" + version.to_bytes(4, "little") + tail)
