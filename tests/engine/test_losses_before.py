"""The untrained model's losses on the disk: the same numbers as measured, and only where they are a function of the
base model and the examples alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rescoldo.engine.losses_before import LossesBefore
from rescoldo.engine.model import LoraModel, evaluate_loss
from rescoldo.engine.types import Example
from tests.engine.common import example, randomize, tiny_base
from tests.engine.common import tiny_lora as _tiny_lora

torch.set_num_threads(1)
LORA = _tiny_lora("llama").lora
EXAMPLES = [example(20, 12, seed=1), example(24, 9, seed=2), example(20, 15, seed=1)]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _load(rank: int = 4, precision: str = "int8", kind: str = "lora", ranges: int = 50) -> LoraModel:
    assert LORA is not None
    calibration = [example(8, 12, seed=ranges + i) for i in range(3)]
    lora = replace(LORA, rank=rank, kind=kind)
    return LoraModel.load(tiny_base("llama", intermediate_size=128), precision, lora, seed=7, calibration=calibration)


def _before(model: LoraModel, examples: list[Example] = EXAMPLES) -> LossesBefore:
    return LossesBefore(tiny_base("llama", intermediate_size=128), model, examples)


def test_they_are_what_another_run_would_measure() -> None:
    first = _load()
    assert _before(first).read() is None
    _before(first).write(evaluate_loss(first, EXAMPLES))
    other = _load(rank=8)  # whatever the adapter is like: it adds nothing yet
    assert _before(other).read() == evaluate_loss(other, EXAMPLES)


def test_an_adapter_that_adds_nothing_changes_no_bit() -> None:
    """It is left out, and put back for the training."""
    model = _load()
    assert model.untrained
    with model.without_adapter():
        assert not model.untrained
        wanted = evaluate_loss(model, EXAMPLES)
    assert evaluate_loss(model, EXAMPLES) == wanted
    assert all(group.enabled for layer in model.layers for group in layer.groups.values())


def test_what_they_depend_on_makes_another_entry() -> None:
    model = _load()
    _before(model).write(evaluate_loss(model, EXAMPLES))
    weighted = replace(EXAMPLES[0], weights=tuple(float(i % 2) for i in range(EXAMPLES[0].n_targets)))
    others = [
        _before(model, EXAMPLES[:2]),
        _before(model, [weighted, *EXAMPLES[1:]]),
        _before(_load(precision="bf16")),
        _before(_load(ranges=80)),
    ]
    assert all(other.read() is None for other in others)


def test_of_a_trained_adapter_and_of_magnitudes_nothing_is_kept() -> None:
    trained = _load()
    randomize(trained)
    for model in (trained, _load(kind="dora")):
        assert not model.untrained
        before = _before(model)
        before.write([(1.0, 1.0)] * 3)
        assert before.read() is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"losses": [[1, 2]]}', b'{"losses": [[NaN, 1], [1, 1], [1, 1]]}', b'{"losses": [1, 2, 3]}'],
)
def test_a_damaged_entry_is_none(content: bytes) -> None:
    model = _load()
    before = _before(model)
    before.write(evaluate_loss(model, EXAMPLES))
    assert before.path is not None
    before.path.write_bytes(content)
    assert before.read() is None
