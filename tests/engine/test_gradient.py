"""Loss, gradients and training steps in fp32 against transformers + PEFT + torch.optim.AdamW."""

from __future__ import annotations

import random

import pytest
import torch

from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import evaluate_loss
from rescoldo.engine.reference import ReferenceDecoder
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.training.optimizer import AdamW, clip
from tests.engine.common import (
    ARCHITECTURES,
    ATTENTION,
    MIXED,
    VARIANTS,
    Variant,
    assert_equal_gradients,
    distance,
    example,
    gradient,
    peft_parameters,
    peft_twin,
    their_loss,
    tiny_base,
    tiny_lora,
    variant_id,
)

torch.set_num_threads(1)

SUBSETS: list[tuple[str, ...]] = [
    ATTENTION,
    ("q_proj", "v_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("k_proj", "o_proj", "up_proj"),
    *((name,) for name in LINEARS),
]
FIVE = [*MIXED, example(1, 12, seed=4), example(6, 5, seed=5, prefix=range(20))]


def _compare(architecture: str, lora: LoraConfig, examples: list[Example], **overrides: object) -> None:
    """Our step's loss and every gradient against PEFT's mean over the step's target tokens."""
    model = tiny_lora(architecture, lora=lora, **overrides)
    theirs = peft_twin(model, architecture, **overrides)
    loss = their_loss(theirs, examples)
    loss.backward()
    ours, gradients = gradient(model, examples)
    assert ours == pytest.approx(float(loss.detach()), abs=1e-5)
    assert gradients.keys() == model.parameters.keys()
    assert_equal_gradients(gradients, theirs, within=2e-5, whole=1e-5, floor=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@pytest.mark.parametrize("targets", [LINEARS, ATTENTION], ids=["all", "attention"])
def test_gradients_equal_peft(variant: Variant, targets: tuple[str, ...]) -> None:
    architecture, overrides = variant
    _compare(architecture, LoraConfig(rank=4, alpha=8, dropout=0.0, targets=targets), FIVE, **overrides)


@pytest.mark.parametrize("targets", SUBSETS, ids="+".join)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_gradients_of_target_subsets(architecture: str, targets: tuple[str, ...]) -> None:
    _compare(architecture, LoraConfig(rank=3, alpha=7.0, dropout=0.0, targets=targets), FIVE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_single_example(architecture: str) -> None:
    for one in (example(3, 40, seed=8), example(1, 1, seed=9), example(50, 2, seed=10)):
        lora = LoraConfig(rank=1, alpha=2.0, dropout=0.0, targets=LINEARS)
        model = tiny_lora(architecture, lora=lora)
        theirs = peft_twin(model, architecture)
        loss = their_loss(theirs, [one])
        loss.backward()
        ours, gradients = gradient(model, [one])
        assert ours == pytest.approx(float(loss.detach()), abs=1e-5)
        for name, p in peft_parameters(theirs).items():
            assert p.grad is not None
            assert (gradients[name] - p.grad).abs().max() < 1e-6 + 2e-5 * p.grad.abs().max(), name


def test_plain_formulas_have_the_same_gradients() -> None:
    """reference.py under autograd: the third opinion."""
    model = tiny_lora("qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    base = tiny_base("qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    parameters = {name: p.clone().requires_grad_() for name, p in model.parameters.items()}
    plain = ReferenceDecoder(base.config, base.tensors, model.lora, parameters)
    n = sum(one.n_targets for one in FIVE)
    total = torch.stack([plain.loss(torch.tensor(one.tokens), one.n_prompt) for one in FIVE]).sum() / n
    total.backward()
    ours, gradients = gradient(model, FIVE)
    assert ours == pytest.approx(float(total.detach()), abs=1e-5)
    assert distance(gradients, {name: p.grad for name, p in parameters.items() if p.grad is not None}) < 1e-5


def test_the_losss_weight_is_the_token_not_the_example() -> None:
    """A step of a long and a short example is the token mean, whichever micro-batches they come in."""
    long, short = example(5, 60, seed=1), example(5, 3, seed=2)
    model = tiny_lora("llama")
    _, together = gradient(model, [long, short], [[0], [1]])
    (_, first), (_, second) = gradient(model, [long]), gradient(model, [short])
    expected = {name: (60 * first[name] + 3 * second[name]) / 63 for name in first}
    assert distance(together, expected) < 1e-5


PACKED = [("llama", {}), ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1})]


@pytest.mark.parametrize("variant", PACKED, ids=["all before", "window"])
def test_documents_of_one_example_do_not_see_each_other(variant: Variant) -> None:
    """Packed into one example they have the loss and the gradients that PEFT has of each by itself; beside an example
    that shares its beginning with another."""
    architecture, overrides = variant
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS)
    documents = [example(1, n, seed=n) for n in (11, 30, 3, 19)]
    lengths = [len(one.tokens) for one in documents]
    starts = tuple(sum(lengths[:i]) for i in range(1, len(lengths)))
    tokens = tuple(token for one in documents for token in one.tokens)
    weights = tuple(float(place not in starts) for place in range(1, len(tokens)))
    packed = Example(tokens, 1, weights, starts)
    beside = [example(4, 9, seed=1, prefix=range(20)), example(2, 17, seed=3, prefix=range(20))]
    model = tiny_lora(architecture, lora=lora, **overrides)
    theirs = peft_twin(model, architecture, **overrides)
    loss = their_loss(theirs, [*documents, *beside])
    loss.backward()
    ours, gradients = gradient(model, [packed, *beside])
    assert ours == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, p in peft_parameters(theirs).items():
        assert p.grad is not None
        assert (gradients[name] - p.grad).abs().max() < 1e-6 + 2e-5 * p.grad.abs().max(), name
    measured = evaluate_loss(model, [packed, *beside])
    assert sum(nats for nats, _ in measured) / sum(n for _, n in measured) == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twenty_steps_of_training_equal_peft(architecture: str) -> None:
    """Same weights, same order, gradient accumulation, clipping and AdamW: the loss curves coincide."""
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS)
    model = tiny_lora(architecture, lora=lora)
    start = {name: p.clone() for name, p in model.parameters.items()}
    theirs = peft_twin(model, architecture)
    data = [example(2 + i % 5, 6 + i, seed=i, prefix=range(18) if i % 3 else ()) for i in range(12)]
    order = [random.Random(e).sample(range(12), 12) for e in range(7)]
    steps = [chunk[i : i + 4] for chunk in order for i in (0, 4, 8)][:20]
    rate = [5e-3 * min(1.0, (s + 1) / 4) for s in range(20)]
    optimizer, ours_curve = AdamW(model.parameters, 0.01), []
    for number, indices in enumerate(steps):
        loss, gradients = gradient(model, [data[i] for i in indices], [[0, 1], [2], [3]], step=number)
        clip(gradients, 1.0)
        optimizer.update(gradients, rate[number], number + 1)
        model.sync()
        ours_curve.append(loss)
    parameters = peft_parameters(theirs)
    torch_optimizer, curve = torch.optim.AdamW(parameters.values(), lr=1.0, weight_decay=0.01), []
    for number, indices in enumerate(steps):
        loss_theirs = their_loss(theirs, [data[i] for i in indices])
        torch_optimizer.zero_grad()
        loss_theirs.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for group in torch_optimizer.param_groups:
            group["lr"] = rate[number]
        torch_optimizer.step()
        curve.append(float(loss_theirs.detach()))
    assert sum(curve[:3]) / 3 > sum(curve[-3:]) / 3 + 0.3  # it learns
    assert max(abs(a - b) for a, b in zip(ours_curve, curve, strict=True)) < 1e-3
    moved = {name: model.parameters[name] - start[name] for name in start}
    moved_theirs = {name: p.detach() - start[name] for name, p in parameters.items()}
    assert distance(moved, moved_theirs) < 0.02
