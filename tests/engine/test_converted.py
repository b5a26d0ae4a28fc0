"""Converted weights on the disk: the same model bit for bit, without converting; damaged entries are made again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescoldo.engine import model
from rescoldo.engine.converted import ConvertedWeights
from rescoldo.engine.kernels import choose as dispatch
from rescoldo.engine.model import LoraModel
from tests.engine.common import example, gradient, randomize, tiny_base
from tests.engine.common import tiny_lora as _tiny_lora

torch.set_num_threads(1)
LORA = _tiny_lora("llama").lora


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every model counts as large, and the cache is this test's own."""
    monkeypatch.setattr(model, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _load(precision: str, state: dict[str, torch.Tensor] | None = None) -> LoraModel:
    base = tiny_base("llama", intermediate_size=128)
    examples = [example(8, 12, seed=i) for i in range(3)]
    loaded = LoraModel.load(
        base, precision, LORA, seed=7, calibration=examples, frozen_state=state, keep_converted=True
    )
    randomize(loaded)
    return loaded


def _entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "rescoldo" / "weights").glob("*.safetensors"))


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_second_start_takes_them_as_they_are(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [example(6, 10, seed=9)]
    first = _load(precision)
    loss, wanted = gradient(first, examples)
    assert len(_entries(tmp_path)) == 4 * first.config.n_layers + 1

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(type(dispatch.kernels()), "int8_pack", refuse)
    monkeypatch.setattr(type(dispatch.kernels()), "nf4_pack", refuse)
    for state in (None, first.frozen_state()):
        again, found = gradient(_load(precision, state), examples)
        assert again == loss
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_damaged_entry_is_made_anew(tmp_path: Path) -> None:
    examples = [example(6, 10, seed=9)]
    loss, _ = gradient(_load("int8"), examples)
    half, flipped, empty = _entries(tmp_path)[:3]
    half.write_bytes(half.read_bytes()[:-100])
    data = bytearray(flipped.read_bytes())
    data[-5] ^= 1
    flipped.write_bytes(data)
    empty.write_bytes(b"")
    assert gradient(_load("int8"), examples)[0] == loss
    assert len(_entries(tmp_path)) == 9
    assert min(path.stat().st_size for path in _entries(tmp_path)) > 1000


def test_other_ranges_are_other_entries_and_old_ones_go(tmp_path: Path) -> None:
    tensors = {"x": torch.arange(1000)}
    kept = ConvertedWeights("base", "int8", 16_000, tmp_path)
    for i in range(8):
        kept.write("layers.0.qkv", torch.full((4,), float(i)), tensors)
    assert kept.read("layers.0.o", torch.zeros(4)) is None
    assert ConvertedWeights("other", "int8", 1, tmp_path).read("layers.0.qkv", torch.zeros(4)) is None
    kept.prune()
    assert len(list(tmp_path.glob("*.safetensors"))) == 8, "a model's own entries stay, however large they are"
    later = ConvertedWeights("base", "int8", 16_000, tmp_path)
    found = later.read("layers.0.qkv", torch.zeros(4))  # now the one used last
    assert found is not None
    assert torch.equal(found["x"], tensors["x"])
    later.prune()
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert kept.read("layers.0.qkv", torch.zeros(4)) is not None


def test_without_room_or_when_turned_off_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ConvertedWeights("base", "int8", 1 << 60, tmp_path).write("a", torch.zeros(1), {"x": torch.zeros(3)})
    monkeypatch.setenv("RESCOLDO_WEIGHT_CACHE", "0")
    ConvertedWeights("base", "int8", 1, tmp_path).write("a", torch.zeros(1), {"x": torch.zeros(3)})
    assert not list(tmp_path.glob("*.safetensors"))
