"""Same seed, same threads, same bytes; dropout as a function of seed, step, layer, site, example and position."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from rescoldo.engine.config import LINEARS
from rescoldo.engine.kernels.ops import Dropout, mix32, mix_key
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from tests.engine.common import distance, example, gradient, tiny_lora

torch.set_num_threads(1)

PRECISIONS = ["fp32", "bf16", "int8", "nf4"]
DROPPED = LoraConfig(rank=4, alpha=8, dropout=0.3, targets=LINEARS)
EXAMPLES = [example(3 + i, 8 + 3 * i, seed=i, prefix=range(20) if i % 2 else ()) for i in range(6)]


def _digest(gradients: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(gradients[name].numpy().tobytes() for name in sorted(gradients))).hexdigest()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_repeat_byte_for_byte(precision: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        digests = set()
        for _ in range(2):
            model = tiny_lora("qwen3", precision, DROPPED, intermediate_size=128)
            digests |= {_digest(gradient(model, EXAMPLES, [[0, 1, 2], [3, 4, 5]])[1]) for _ in range(3 - threads)}
    finally:
        torch.set_num_threads(1)
    assert len(digests) == 1


@pytest.mark.slow
def test_gradients_repeat_in_another_process() -> None:
    script = "from tests.engine.test_determinism import all_digests;print(*all_digests())"
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": "7"}
    run = [sys.executable, "-c", script]
    theirs = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.split()[-4:]
    assert theirs == all_digests()


def all_digests() -> list[str]:
    """The gradient's hash in each precision."""
    models = [tiny_lora("qwen3", precision, DROPPED, intermediate_size=128) for precision in PRECISIONS]
    return [_digest(gradient(model, EXAMPLES, [[0, 1, 2], [3, 4, 5]])[1]) for model in models]


def test_int8_from_a_saved_calibration_is_the_same_model() -> None:
    from rescoldo.engine.model import LoraModel
    from tests.engine.common import randomize, tiny_base

    first = tiny_lora("llama", "int8", DROPPED)
    state = first.frozen_state()
    assert state
    again = LoraModel.load(tiny_base("llama"), "int8", DROPPED, seed=7, frozen_state=state)
    randomize(again)
    assert _digest(gradient(again, EXAMPLES)[1]) == _digest(gradient(first, EXAMPLES)[1])
    assert all(torch.equal(again.frozen_state()[name], state[name]) for name in state)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [False, True])
def test_dropout_does_not_depend_on_the_micro_batches(share: bool) -> None:
    model = tiny_lora("llama", lora=DROPPED)
    model.share_prefix = share
    loss, together = gradient(model, EXAMPLES)
    for parts in ([[0], [1], [2], [3], [4], [5]], [[5, 0], [4, 1, 3], [2]], [[5, 4, 3, 2, 1, 0]]):
        again_loss, again = gradient(model, EXAMPLES, parts)
        assert again_loss == pytest.approx(loss, rel=1e-5)
        assert distance(again, together) < 1e-5
    model.lora, kept = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS), model.lora
    _, without = gradient(model, EXAMPLES)
    model.lora = kept
    assert distance(without, together) > 0.05  # there was dropout to compare


def test_dropout_changes_with_step_and_seed() -> None:
    model = tiny_lora("llama", lora=DROPPED)
    _, first = gradient(model, EXAMPLES, step=1, seed=1)
    for step, seed in ((2, 1), (1, 2), (1, 1 + (1 << 32))):
        assert distance(gradient(model, EXAMPLES, step=step, seed=seed)[1], first) > 0.05


def test_equal_examples_of_a_step_draw_different_masks() -> None:
    one = Example((5, 6, 7, 8, 9, 10, 11, 12), 4)
    model = tiny_lora("llama", lora=DROPPED)
    step = GradientStep(model, [one, one], step=0, seed=0)
    assert step.micro_batch([0]) != step.micro_batch([1])


def test_evaluation_and_decoding_have_no_dropout() -> None:
    model = tiny_lora("llama", lora=DROPPED)
    plain = tiny_lora("llama", lora=LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS))
    tokens = torch.arange(30)
    assert torch.equal(model.logits(tokens), plain.logits(tokens))


def test_the_gradient_with_dropout_is_right_on_average() -> None:
    """The first layer's B sees its input through the mask alone: over many steps the mean is near the plain one."""
    lora = LoraConfig(rank=4, alpha=8, dropout=0.1, targets=("q_proj",))
    model = tiny_lora("llama", lora=lora, num_hidden_layers=1)
    for name, parameter in model.parameters.items():
        if name.endswith("lora_B"):
            parameter.zero_()  # then dropout reaches the gradient of B through z alone, linearly
    model.sync()
    total: dict[str, torch.Tensor] = {}
    n = 300
    for step in range(n):
        for name, value in gradient(model, EXAMPLES[:2], step=step)[1].items():
            total[name] = total.get(name, torch.zeros_like(value)) + value / n
    plain = tiny_lora("llama", lora=LoraConfig(4, 8, 0.0, ("q_proj",)), num_hidden_layers=1)
    for name, parameter in plain.parameters.items():
        parameter.copy_(model.parameters[name])
    plain.sync()
    assert distance(total, gradient(plain, EXAMPLES[:2])[1]) < 0.1


def _mask(key: int, rows: torch.Tensor, threshold: int, columns: int) -> torch.Tensor:
    return Dropout(threshold, key, rows).mask(columns)


@pytest.mark.parametrize("threshold", [1, 26, 128, 200])
def test_the_probability_to_be_dropped_is_right(threshold: int) -> None:
    rows = torch.arange(400) + (3 << 18)
    columns, p = 577, threshold / 256
    for key in (mix_key(42, 0, 0, 0), mix_key(42, 1, 5, 3)):
        dropped = ~_mask(key, rows, threshold, columns)
        for shares, n in ((dropped.double().mean(), 400 * 577), (dropped.double().mean(0), 400), (
            dropped.double().mean(1), 577
        )):  # fmt: skip
            sigma = (p * (1 - p) / n) ** 0.5
            assert ((shares - p).abs() <= 5.5 * sigma).all()
        for byte in range(4):  # each of a word's four bytes
            share = dropped[:, byte::4].double().mean()
            assert abs(share - p) <= 5.5 * (p * (1 - p) / (400 * 144)) ** 0.5


def test_masks_of_neighbours_are_independent() -> None:
    """Neighbouring columns and rows, the same place in other layers, sites, steps, seeds and examples."""
    rows = torch.arange(300) + (1 << 18)
    key = mix_key(42, 7, 3, 1)
    base = _mask(key, rows, 128, 512)
    others = {
        "column": base.roll(1, 1),
        "word": base.roll(4, 1),
        "row": base.roll(1, 0),
        "layer": _mask(mix_key(42, 7, 4, 1), rows, 128, 512),
        "site": _mask(mix_key(42, 7, 3, 2), rows, 128, 512),
        "step": _mask(mix_key(42, 8, 3, 1), rows, 128, 512),
        "seed": _mask(mix_key(43, 7, 3, 1), rows, 128, 512),
        "example": _mask(key, rows + (1 << 18), 128, 512),
        "position": _mask(key, rows + 300, 128, 512),
    }
    for name, other in others.items():
        assert abs(float((base == other).double().mean()) - 0.5) < 5 * 0.5 / (300 * 512) ** 0.5, name


def test_masks_are_fixed_for_ever() -> None:
    """A resumed run of another version must draw the same: these are the function's values, not its behaviour."""
    assert mix32(torch.tensor([0, 1, 2**32 - 1])).tolist() == [mix32_plain(x) for x in (0, 1, 2**32 - 1)]
    assert (mix_key(42, 1, 2, 3), mix_key(), mix_key(2**40)) == FIXED_KEYS
    mask = Dropout(64, mix_key(42, 1, 2, 3), torch.tensor([5, 262149])).mask(2000)
    assert hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:16] == FIXED_MASK


def mix32_plain(x: int) -> int:
    """Wellons' lowbias32 in Python's integers."""
    for multiplier, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)):
        x = ((x ^ (x >> shift)) * multiplier) & 0xFFFFFFFF
    return x ^ (x >> 16)


FIXED_KEYS = (3134578858, 2654435769, 3999790943)
FIXED_MASK = "8522be796a8c3303"
