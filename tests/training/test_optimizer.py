"""AdamW, clipping and schedule against torch and transformers; the plan of an epoch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.training.config import RunConfig
from rescoldo.training.optimizer import AdamW, clip, lr_factor, warmup_steps
from rescoldo.training.plan import Plan, shuffled


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in (("a", (3, 5)), ("b", (7,)), ("c", (2, 2)))
    }


def test_adamw_equals_torch_bit_for_bit():
    ours, theirs = tensors(0), [tensor.clone().requires_grad_() for tensor in tensors(0).values()]
    optimizer = AdamW(ours, 0.01)
    reference = torch.optim.AdamW(theirs, lr=1.0, weight_decay=0.01, foreach=False)
    for step in range(1, 30):
        gradients, lr = tensors(step), 0.1 / step
        for parameter, gradient in zip(theirs, gradients.values(), strict=True):
            parameter.grad = gradient.clone()
        reference.param_groups[0]["lr"] = lr
        reference.step()
        optimizer.update(gradients, lr, step)
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs, strict=True))


def test_adamw_state_goes_round():
    one, two = AdamW(tensors(0), 0.01), AdamW(tensors(0), 0.01)
    one.update(tensors(1), 0.1, 1)
    for key, tensor in one.parameters.items():
        two.parameters[key].copy_(tensor)
    two.load_state({key: tensor.clone() for key, tensor in one.state().items()})
    for optimizer in (one, two):
        optimizer.update(tensors(2), 0.1, 2)
    assert all(torch.equal(one.parameters[key], two.parameters[key]) for key in one.parameters)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_clip_equals_torch(size):
    ours = {key: tensor * size for key, tensor in tensors(3).items()}
    theirs = [torch.zeros_like(tensor).requires_grad_() for tensor in ours.values()]
    for parameter, gradient in zip(theirs, ours.values(), strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0, foreach=False)
    assert clip(ours, 1.0) == pytest.approx(expected.item(), rel=1e-6)
    for gradient, parameter in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=0)


def test_clip_leaves_what_is_not_finite():
    gradients = {"a": torch.tensor([1.0, math.inf])}
    assert clip(gradients, 1.0) == math.inf
    assert gradients["a"][0] == 1.0


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (8, 150), (1, 2), (5, 5)])
def test_schedule_equals_transformers(warmup, total):
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total):
        assert lr_factor(step, warmup, total) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (1, 2)])
def test_the_linear_schedule_equals_transformers(warmup, total):
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total):
        assert lr_factor(step, warmup, total, "linear") == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(0.0, 100, 0), (0.05, 39, 2), (8.0, 150, 8), (0.5, 1, 0), (200.0, 100, 99)]
)
def test_warmup_is_a_share_or_a_number_and_leaves_a_step_to_train(warmup, total, steps):
    assert warmup_steps(warmup, total) == steps


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.none() | st.integers(1, 50))
def test_plan_visits_every_example_once_an_epoch(n, batch, accum, epochs, max_steps):
    fields = {"batch_size": batch, "grad_accum": accum, "epochs": epochs, "max_steps": max_steps}
    plan = Plan(RunConfig(train="a", val="b", output="c", **fields), n)
    groups = [group for epoch in range(plan.epochs) for group in plan.groups(epoch)]
    assert len(groups) == plan.total_steps
    for epoch in range(plan.epochs - 1):
        seen = [i for group in plan.groups(epoch) for i in group]
        assert sorted(seen) == list(range(n))
        assert sum(len(plan.batches(group)) for group in plan.groups(epoch)) == plan.batches_per_epoch
    for group in groups:
        assert [group[i] for places in plan.batches(group) for i in places] == group
        assert 1 <= len(group) <= batch * accum


def test_order_depends_on_seed_and_epoch_alone():
    assert shuffled(98, 42, 0) == shuffled(98, 42, 0)
    assert len({tuple(shuffled(98, seed, epoch)) for seed in (1, 42) for epoch in (0, 1)}) == 4
    assert shuffled(6, 42, 0) == [2, 5, 3, 4, 0, 1]  # a change here would break every checkpoint
