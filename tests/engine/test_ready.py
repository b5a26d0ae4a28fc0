"""A step says of each gradient when it is ready: once, behind its last change, the top layer first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import layer_of
from rescoldo.engine.prefix import group_by_prefix
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from tests.engine.common import example, tiny_lora
from tests.engine.test_prefix import SHARED

torch.set_num_threads(1)

APART = [example(3, 6, seed=seed) for seed in range(4)]


def reported(
    examples: Sequence[Example], parts: Sequence[Sequence[int]], mine: Sequence[int] | None, keep: int | None = None
) -> tuple[list[dict[str, torch.Tensor]], int, dict[str, torch.Tensor]]:
    """What a step reports, with the values it had then; how much of that before `finish`; the step's gradient."""
    model = tiny_lora("llama", lora=LoraConfig(4, 8.0, 0.25, LINEARS), num_hidden_layers=4)
    model.keep_layers = keep
    found: list[dict[str, torch.Tensor]] = []

    def on_ready(gradients: dict[str, torch.Tensor]) -> None:
        found.append({name: gradient.clone() for name, gradient in gradients.items()})

    step = GradientStep(model, examples, step=1, seed=2, mine=mine, on_ready=on_ready)
    for part in parts:
        assert not found
        step.micro_batch(part)
    early = len(found)
    return found, early, step.finish()


@pytest.mark.parametrize(
    ("examples", "parts", "mine", "early"),
    [
        (SHARED, [[0, 1], [2, 3], [4, 5]], None, 0),  # two beginnings and an example of its own
        (SHARED, [[1], [4]], [1, 4], 0),
        (SHARED, [[1]], [1], 4),  # others have the shared beginnings
        (APART, [[0, 1], [2, 3]], None, 4),
        (APART, [[3]], [3], 4),
        (SHARED, [], [], 0),
        (APART, [], [], 0),
        (APART, [[0]], None, 0),  # one that was begun by another process: it ends with finish
    ],
)
@pytest.mark.parametrize("keep", [None, 1])
def test_each_gradient_once_and_final(
    examples: list[Example], parts: list[list[int]], mine: list[int] | None, early: int, keep: int | None
) -> None:
    found, before, gradient = reported(examples, parts, mine, keep)
    assert [{layer_of(name) for name in layer} for layer in found] == [{3}, {2}, {1}, {0}]
    assert before == early
    assert sorted(itertools.chain(*found)) == sorted(gradient)
    for layer in found:
        for name, value in layer.items():
            assert torch.equal(value, gradient[name])


def test_the_cases_are_what_they_say() -> None:
    assert sorted(group.length for group in group_by_prefix(SHARED)) == [0, 20, 30]
    assert all(group.length == 0 for group in group_by_prefix(APART))
