"""Input ranges on the disk: the same model bit for bit, without measuring; what they depend on makes another entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescoldo.engine import calibrated, converter
from rescoldo.engine.calibrated import load_calibrated
from rescoldo.engine.kernels import choose as dispatch
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.engine.model import LoraModel
from tests.engine.common import example, gradient, randomize, tiny_base
from tests.engine.common import tiny_lora as _tiny_lora

torch.set_num_threads(1)
LORA = _tiny_lora("llama").lora


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _load(seed: int = 0, kind: str = "int8") -> LoraModel:
    examples = [example(8, 12, seed=seed + i) for i in range(3)]
    loaded = load_calibrated(
        tiny_base("llama", intermediate_size=128), kind, LORA, seed=7, calibration=examples, frozen_state=None
    )
    randomize(loaded)
    return loaded


def _entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "rescoldo" / "ranges").glob("*.safetensors"))


def _refuse(*_: object) -> None:
    raise AssertionError("measured again")


def test_a_second_start_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [example(6, 10, seed=9)]
    loss, wanted = gradient(_load(), examples)
    assert len(_entries(tmp_path)) == 1
    monkeypatch.setattr(converter.Converter, "_measure", _refuse)
    again, found = gradient(_load(), examples)
    assert again == loss
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_other_examples_precisions_and_kernels_have_entries_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _load()
    _load(seed=5)
    _load(kind="nf4")
    assert len(_entries(tmp_path)) == 3
    dispatch.use(TorchKernels())
    try:
        monkeypatch.setattr(TorchKernels, "name", "others")
        _load()
    finally:
        dispatch.use(None)
    assert len(_entries(tmp_path)) == 4
    _load(kind="bf16")
    assert len(_entries(tmp_path)) == 4


def test_a_damaged_entry_is_measured_anew(tmp_path: Path) -> None:
    ranges = _load().frozen_state()
    (entry,) = _entries(tmp_path)
    whole = entry.read_bytes()
    for damage in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:20], b""):
        entry.write_bytes(damage)
        again = _load().frozen_state()
        assert all(torch.equal(again[name], ranges[name]) for name in ranges)
        assert entry.read_bytes() == whole


def test_few_entries_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrated, "_KEPT", 2)
    for seed in (0, 10, 20):
        _load(seed=seed)
    assert len(_entries(tmp_path)) == 2


def test_the_cache_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCOLDO_WEIGHT_CACHE", "0")
    _load()
    assert not _entries(tmp_path)
