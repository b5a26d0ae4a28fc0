"""Shared beginnings: exact in fp32 whatever the grouping; steps that stop half-way; layers computed again."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import LoraModel, evaluate_loss
from rescoldo.engine.prefix import MINIMUM, group_by_prefix
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from tests.engine.common import cosine, distance, example, gradient, tiny_lora

torch.set_num_threads(1)

WINDOWED = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1, "num_hidden_layers": 3}
MODELS = {
    "llama": lambda: tiny_lora("llama"),
    "mistral, window": lambda: tiny_lora("mistral", sliding_window=9),
    "qwen2, biases, windows": lambda: tiny_lora("qwen2", **WINDOWED),
    "qwen3, attention only": lambda: tiny_lora("qwen3", lora=LoraConfig(4, 8.0, 0.0), **WINDOWED),
    "llama, mlp only": lambda: tiny_lora("llama", lora=LoraConfig(4, 8.0, 0.0, LINEARS[4:])),
}
SHARED = [
    example(4, 9, seed=1, prefix=range(30)),
    example(3, 6, seed=2),
    example(2, 7, seed=3, prefix=range(30)),
    example(5, 12, seed=4, prefix=range(100, 120)),
    example(6, 5, seed=5, prefix=range(30)),
    example(1, 3, seed=6, prefix=range(100, 120)),
]


def _set(model: LoraModel, share: bool) -> LoraModel:
    model.share_prefix = share
    return model


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Example], list[list[int]]]:
    """A step's examples over 0 to 3 common beginnings (one may begin another), and a partition into micro-batches."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    prefixes: list[list[int]] = [[]]
    for _ in range(draw(st.integers(0, 3))):
        base = draw(st.sampled_from(prefixes))
        prefixes.append(base + torch.randint(0, 288, (draw(st.integers(1, 40)),), generator=generator).tolist())
    examples = []
    for _ in range(draw(st.integers(1, 6))):
        prefix = draw(st.sampled_from(prefixes))
        n_prompt, n_targets = draw(st.integers(0 if prefix else 1, 12)), draw(st.integers(1, 12))
        own = torch.randint(0, 288, (n_prompt + n_targets,), generator=generator).tolist()
        examples.append(Example((*prefix, *own), len(prefix) + n_prompt))
    order = draw(st.permutations(range(len(examples))))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(examples) - 1)))) - {len(examples)})
    parts = [list(order[a:b]) for a, b in itertools.pairwise([0, *cuts, len(examples)])]
    return examples, parts


@pytest.mark.parametrize("name", MODELS)
def test_sharing_is_exact(name: str) -> None:
    model = MODELS[name]()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(steps())
    def check(drawn: tuple[list[Example], list[list[int]]]) -> None:
        examples, parts = drawn
        loss, shared = gradient(_set(model, True), examples, parts)
        plain_loss, plain = gradient(_set(model, False), examples)
        assert loss == pytest.approx(plain_loss, rel=1e-5)
        assert distance(shared, plain) < 1e-5
        shared_eval = evaluate_loss(_set(model, True), examples)
        plain_eval = evaluate_loss(_set(model, False), examples)
        for (a, n), (b, m), one in zip(shared_eval, plain_eval, examples, strict=True):
            assert n == m == one.n_targets
            assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
        assert sum(a for a, _ in shared_eval) / sum(n for _, n in shared_eval) == pytest.approx(loss, rel=1e-5)

    check()


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_sharing_is_close_in_lower_precisions(precision: str) -> None:
    model = tiny_lora("llama", precision, intermediate_size=128)
    _, shared = gradient(_set(model, True), SHARED, [[0, 1], [2, 3, 4], [5]])
    _, plain = gradient(_set(model, False), SHARED)
    assert cosine(shared, plain) > (0.995 if precision == "int8" else 0.999)


def test_the_shared_part_is_computed_once() -> None:
    """Rows that pass through the first layer: each group's prefix once, each example's own rest."""
    model, seen = tiny_lora("llama"), []
    forward = model.layers[0].forward
    model.layers[0].forward = lambda h, *rest, **more: (seen.append(len(h)), forward(h, *rest, **more))[1]  # type: ignore[method-assign]
    gradient(model, SHARED, [[0], [1, 2], [3], [4, 5]])
    groups = group_by_prefix(SHARED)
    assert {g.length for g in groups} == {0, 20, 30}
    assert sum(seen) == sum(g.length for g in groups) + sum(
        len(SHARED[i].tokens) - 1 - g.length for g in groups for i in g.indices
    )


# --- grouping ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(steps(), st.sampled_from([1, 4, MINIMUM, 1 << 30]))
def test_groups_partition_share_what_is_equal_and_never_cost_more(
    drawn: tuple[list[Example], list[list[int]]], minimum: int
) -> None:
    examples, _ = drawn
    groups = group_by_prefix(examples, minimum)
    assert sorted(i for g in groups for i in g.indices) == list(range(len(examples)))
    assert [g.indices[0] for g in groups] == sorted(g.indices[0] for g in groups)
    for g in groups:
        assert g.length == 0 or (g.length >= minimum and len(g.indices) > 1)
        assert len({examples[i].tokens[: g.length] for i in g.indices}) == 1
        assert all(g.length < examples[i].n_prompt for i in g.indices)
    cost = sum(g.length + sum(len(examples[i].tokens) - g.length for i in g.indices) for g in groups)
    assert cost <= sum(len(one.tokens) for one in examples)
    assert groups == group_by_prefix(examples, minimum)
    if minimum == 1 << 30:
        assert all(g.length == 0 for g in groups)


def test_no_examples_no_groups() -> None:
    assert group_by_prefix([]) == []
    assert evaluate_loss(tiny_lora("llama"), []) == []


def test_one_common_prefix_is_found_whole() -> None:
    examples = [example(5, 5, seed=i, prefix=(*range(40), 200 + i)) for i in range(4)]
    (group,) = group_by_prefix(examples)
    assert group.indices == (0, 1, 2, 3)
    assert group.length == 40


def test_equal_prompts_leave_the_row_that_predicts_to_each_example() -> None:
    same = [Example((*range(30), 7, 8, 9), 30), Example((*range(30), 7, 8), 30)]
    (group,) = group_by_prefix(same)
    assert group.length == 29


def test_two_families_are_told_apart() -> None:
    """Six examples begin with the same 20 tokens; two families of three share 50 more: two groups cost less."""
    common = tuple(range(20))
    families = [(*common, *range(100, 150)), (*common, *range(200, 250))]
    examples = [example(3, 4, seed=i, prefix=(*families[i % 2], 80 + i)) for i in range(6)]
    assert [(g.indices, g.length) for g in group_by_prefix(examples)] == [((0, 2, 4), 70), ((1, 3, 5), 70)]


def test_many_examples_are_grouped_fast() -> None:
    """A whole dataset at once (evaluation does that), no two of the same depth."""
    long = tuple(i % 288 for i in range(1500))
    examples = [example(3, 4, seed=i, prefix=long[: 500 + i]) for i in range(1200)]
    assert sorted(i for g in group_by_prefix(examples) for i in g.indices) == list(range(1200))


# --- stopping half-way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_state_continues_bit_for_bit(precision: str, stop: int) -> None:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.25, targets=LINEARS)
    model = tiny_lora("llama", precision, lora, intermediate_size=128)
    parts = [[0, 1], [2, 3], [4, 5]]
    whole = GradientStep(model, SHARED, step=3, seed=5)
    losses = [whole.micro_batch(part) for part in parts]
    expected = whole.finish()
    first = GradientStep(model, SHARED, step=3, seed=5)
    for part in parts[:stop]:
        first.micro_batch(part)
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    again = GradientStep(model, SHARED, step=3, seed=5)
    again.load_state(state)
    assert [again.micro_batch(part) for part in parts[stop:]] == losses[stop:]
    finished = again.finish()
    assert all(torch.equal(finished[name], expected[name]) for name in expected)


def test_state_holds_the_prefixs_gradients_too() -> None:
    model = tiny_lora("llama")
    one = GradientStep(model, SHARED, step=0, seed=0)
    assert not any(name.startswith("prefix") for name in one.state())
    one.micro_batch([0, 3])
    names = {name for name in one.state() if name.startswith("prefix")}
    assert len(names) == 4  # two prefixes met so far, keys and values
    assert all(one.state()[name].abs().max() > 0 for name in names)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_computing_again_changes_no_bit(precision: str, keep: int) -> None:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.25, targets=LINEARS)
    model = tiny_lora("qwen3", precision, lora, num_hidden_layers=3, intermediate_size=128)
    loss, expected = gradient(model, SHARED, [[0, 1, 2], [3, 4, 5]])
    model.keep_layers = keep
    again_loss, again = gradient(model, SHARED, [[0, 1, 2], [3, 4, 5]])
    assert again_loss == loss
    assert all(torch.equal(again[name], expected[name]) for name in expected)
