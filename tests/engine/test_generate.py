"""Batched decoding: greedy equals transformers' generate, sampling is a function of (seed, prompt, position)."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from rescoldo.engine.config import LINEARS
from rescoldo.engine.generate import Batch, Decoder, choose, generate, generate_together
from rescoldo.engine.model import LoraModel
from rescoldo.engine.types import Generated, LoraConfig, Sampling
from tests.base.make_models import tiny_model
from tests.engine.common import VOCABULARY, example, peft_twin, tiny_base, tiny_lora

torch.set_num_threads(1)

WINDOWED: dict[str, Any] = {
    "use_sliding_window": True,
    "sliding_window": 12,
    "max_window_layers": 1,
    "num_hidden_layers": 3,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope": "llama3", "tie_word_embeddings": True}),
    ("llama", {"head_dim": 8, "num_key_value_heads": 1}),
    ("mistral", {"sliding_window": 9}),
    ("qwen2", {}),
    ("qwen2", WINDOWED),
    ("qwen3", {}),
    ("qwen3", WINDOWED),
]
PROMPTS = [
    list(example(n, 1, seed=n, prefix=prefix).tokens[:-1])
    for n, prefix in (
        (1, ()),
        (9, range(25)),
        (30, ()),
        (2, range(25)),
        (5, range(100, 130)),
        (5, range(25)),
        (17, range(100, 130)),
    )
]


def _all(model: LoraModel, prompts: list[list[int]], sampling: Sampling, stop: set[int]) -> list[Generated]:
    rows = list(generate(model, prompts, sampling, frozenset(stop)))
    assert sorted(row.index for row in rows) == list(range(len(prompts)))
    return sorted(rows, key=lambda row: row.index)


def _theirs(model: Any, prompt: list[int], stop: set[int], limit: int) -> tuple[list[int], bool]:
    """transformers' greedy answer to one prompt, without the stop token, and whether it stopped by itself."""
    tokens = torch.tensor([prompt])
    out = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=limit,
        eos_token_id=sorted(stop) or None, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return (out[:-1], True) if out and out[-1] in stop else (out, False)


@pytest.mark.parametrize(("architecture", "overrides"), CASES)
def test_greedy_equals_transformers(architecture: str, overrides: dict[str, Any]) -> None:
    model = LoraModel.load(tiny_base(architecture, **overrides), "fp32", None, seed=0)
    theirs = tiny_model(architecture, **overrides)
    theirs.generation_config.eos_token_id = None
    free = [_theirs(theirs, prompt, set(), 24)[0] for prompt in PROMPTS]
    assert [row.tokens for row in _all(model, PROMPTS, Sampling(max_new_tokens=24), set())] == free
    assert len({tuple(tokens) for tokens in free}) == len(PROMPTS)
    stop = {free[0][5], free[1][9], free[2][0]}  # rows leave at different steps, one with nothing said
    expected = [_theirs(theirs, prompt, stop, 24) for prompt in PROMPTS]
    rows = _all(model, PROMPTS, Sampling(max_new_tokens=24), stop)
    assert [(row.tokens, row.ended) for row in rows] == expected
    assert rows[2].tokens == []
    assert {row.ended for row in rows} >= {True}


def test_the_adapter_is_used_and_can_be_left_out() -> None:
    model = tiny_lora("llama", lora=LoraConfig(rank=4, alpha=8, dropout=0.3, targets=LINEARS))
    for theirs, tuned in ((peft_twin(model, "llama").eval(), True), (tiny_model("llama"), False)):
        theirs.generation_config.eos_token_id = None
        expected = [_theirs(theirs, prompt, set(), 12)[0] for prompt in PROMPTS]
        if tuned:
            ours = _all(model, PROMPTS, Sampling(max_new_tokens=12), set())
        else:
            with model.without_adapter():
                ours = _all(model, PROMPTS, Sampling(max_new_tokens=12), set())
        assert [row.tokens for row in ours] == expected


def test_long_answers_outgrow_the_cache() -> None:
    """More than one growth of the cache, and positions far behind the prompt."""
    model = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    theirs = tiny_model("llama")
    theirs.generation_config.eos_token_id = None
    rows = _all(model, PROMPTS[1:3], Sampling(max_new_tokens=200), set())
    for row, prompt in zip(rows, PROMPTS[1:3], strict=True):
        assert row.tokens == _theirs(theirs, prompt, set(), 200)[0]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_limits_and_progress(limit: int) -> None:
    model = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    counts: list[int] = []
    rows = list(generate(model, PROMPTS, Sampling(max_new_tokens=limit), frozenset(), counts.append))
    assert all(len(row.tokens) == limit and not row.ended and row.seconds >= 0 for row in rows)
    assert counts == sorted(counts)
    assert counts[-1] == limit * len(PROMPTS)


def test_equal_prompts_and_no_prompts() -> None:
    model = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    rows = _all(model, [PROMPTS[1]] * 3, Sampling(max_new_tokens=10), set())
    assert rows[0].tokens == rows[1].tokens == rows[2].tokens
    assert list(generate(model, [], Sampling(), frozenset())) == []


def test_rows_are_handed_out_as_they_end() -> None:
    """The first row to end arrives before the others are decoded."""
    model = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    free = _all(model, PROMPTS[:1] + PROMPTS[2:3], Sampling(max_new_tokens=20), set())
    stop = frozenset({free[0].tokens[2]} - set(free[1].tokens[:15]))
    counts: list[int] = []
    rows = generate(model, PROMPTS[:1], Sampling(max_new_tokens=20), stop, counts.append)
    assert next(rows).ended == bool(stop)
    same = [[*range(20), 5], [*range(20), 9, 4]]  # one group: both are decoded together
    free = _all(model, same, Sampling(max_new_tokens=30), set())
    at = next(i for i, token in enumerate(free[0].tokens) if token not in free[1].tokens)
    counts.clear()
    rows = generate(model, same, Sampling(max_new_tokens=30), frozenset({free[0].tokens[at]}), counts.append)
    first = next(rows)
    assert (first.index, first.tokens, first.ended) == (0, free[0].tokens[:at], True)
    assert (counts or [0])[-1] <= 2 * at + 1
    second = next(rows)
    assert (second.index, second.tokens, second.ended) == (1, free[1].tokens, False)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_decoding_agrees_with_the_whole_pass(precision: str) -> None:
    """Token by token with a cache gives the logits of one pass over prompt and answer: the choice is (nearly) the
    best one there."""
    model = tiny_lora("llama", precision, intermediate_size=128)
    for row in _all(model, PROMPTS, Sampling(max_new_tokens=12), set()):
        prompt = PROMPTS[row.index]
        logits = model.logits(torch.tensor(prompt + row.tokens))[len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(row.tokens)[:, None])[:, 0]
        assert (logits.max(1).values - chosen).max() < 0.1 * logits.std()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_models_that_take_their_steps_together_answer_as_alone(precision: str, temperature: float) -> None:
    """With the adapter, without, and held to a constraint, in one batch whose rows end at different steps."""
    model = tiny_lora("llama", precision, intermediate_size=128)
    how, stop = Sampling(temperature, max_new_tokens=14, seed=3), frozenset({7, 8, 9, 10, 11, 12})
    batches = [Batch(PROMPTS), Batch(PROMPTS[1:], adapter=False), Batch(PROMPTS[::-1], False, _Even), Batch([])]
    found = list(generate_together(model, batches, how, stop))
    for place, batch in enumerate(batches):
        alone = generate(model, batch.prompts, how, stop, None, batch.constrain)
        with contextlib.nullcontext() if batch.adapter else model.without_adapter():
            expected = {row.index: (row.tokens, row.ended) for row in alone}
        assert {row.index: (row.tokens, row.ended) for at, row in found if at == place} == expected
    assert len({len(row.tokens) for _, row in found}) > 2
    held = [row.tokens for at, row in found if at == 2]
    assert all(token % 2 == 0 for tokens in held for token in tokens)


def test_together_the_weights_are_read_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lora("llama")
    same = [[*range(20), 5], [*range(20), 9, 4]]
    rows: list[int] = []
    forward = LoraModel.forward

    def counted(self: LoraModel, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(tokens))
        return forward(self, tokens, *rest)

    monkeypatch.setattr(LoraModel, "forward", counted)
    list(generate_together(model, [Batch(same), Batch(same, adapter=False)], Sampling(max_new_tokens=6), frozenset()))
    assert rows[-5:] == [4] * 5
    assert len(rows) == 2 * 3 + 5, "two prefixes with two prompts each, then a pass for each token but the last"


class _Even:
    """Allows even tokens."""

    def mask_(self, logits: torch.Tensor) -> str:
        logits[1::2] = -torch.inf
        return ""

    def allows(self, token: int) -> bool:
        return token % 2 == 0

    def accept(self, token: int) -> None:
        assert token % 2 == 0


# --- rows that come and go --------------------------------------------------------------------------------------------


def _drain(decoder: Decoder, written: dict[int, list[int]], steps: int = 1 << 20) -> None:
    while len(decoder) and steps:
        for step in decoder.step():
            if step.token is not None:
                written.setdefault(step.key, []).append(step.token)
        steps -= 1


@pytest.mark.parametrize("prefix", [0, 16])
def test_rows_admitted_at_any_time_are_decoded_as_if_alone(prefix: int) -> None:
    """Different prompts, limits and samplings, each admitted while others are half-way; many come and go."""
    model = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    begin = list(range(100, 100 + prefix))
    asked = {
        key: (
            [*begin, *range(3 + key, 8 + 5 * key)],
            Sampling(0.8 * (key % 3 == 0), 0.9, max_new_tokens=3 + 11 * (key % 4), seed=key),
        )
        for key in range(14)
    }
    stop = frozenset({5, 6, 7, 8})
    alone = {key: next(iter(generate(model, [prompt], how, stop))).tokens for key, (prompt, how) in asked.items()}
    decoder = Decoder(model, stop, begin)
    written: dict[int, list[int]] = {key: [] for key in asked}
    for key, (prompt, how) in asked.items():
        decoder.admit(key, prompt, how)
        _drain(decoder, written, steps=1 + key % 3)
    _drain(decoder, written)
    assert written == alone
    assert len({len(tokens) for tokens in alone.values()}) > 3
    assert decoder._cache.slots == 0, "an empty decoder keeps no cache"


def test_cancelled_rows_leave_and_the_others_do_not_notice() -> None:
    model = LoraModel.load(tiny_base("qwen3"), "fp32", None, seed=0)
    how = Sampling(max_new_tokens=20)
    alone = [_all(model, [prompt], how, set())[0].tokens for prompt in PROMPTS[:4]]
    decoder = Decoder(model, frozenset())
    for key, prompt in enumerate(PROMPTS[:4]):
        decoder.admit(key, prompt, how)
    written: dict[int, list[int]] = {}
    _drain(decoder, written, steps=5)
    decoder.cancel({0, 2, 99})
    assert len(decoder) == 2
    _drain(decoder, written)
    assert [written[key] for key in range(4)] == [alone[0][:5], alone[1], alone[2][:5], alone[3]]


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_sampling_repeats_and_does_not_depend_on_the_batch() -> None:
    model = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    sampling = Sampling(temperature=0.9, top_p=0.95, max_new_tokens=16, seed=11)
    together = [row.tokens for row in _all(model, PROMPTS, sampling, {7, 8, 9})]
    assert together == [row.tokens for row in _all(model, PROMPTS, sampling, {7, 8, 9})]
    alone = [_all(model, [prompt], sampling, {7, 8, 9})[0].tokens for prompt in PROMPTS]
    assert together == alone
    backwards = [row.tokens for row in _all(model, PROMPTS[::-1], sampling, {7, 8, 9})][::-1]
    assert together == backwards
    other = [row.tokens for row in _all(model, PROMPTS, Sampling(0.9, 0.95, 16, 12), {7, 8, 9})]
    assert sum(a != b for a, b in zip(together, other, strict=True)) >= 6


def test_temperature_near_zero_is_greedy() -> None:
    model = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    greedy = [row.tokens for row in _all(model, PROMPTS, Sampling(max_new_tokens=8), set())]
    assert [row.tokens for row in _all(model, PROMPTS, Sampling(1e-4, 1.0, 8), set())] == greedy
    assert [row.tokens for row in _all(model, PROMPTS, Sampling(1.0, 1e-6, 8), set())] == greedy


def test_the_greedy_choice_is_the_first_of_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 300, generator=generator).bfloat16()  # with ties
    below = -noise.abs()
    rows = [noise, below, torch.zeros(2, 300).bfloat16(), torch.full((2, 300), -torch.inf).bfloat16()]
    rows += [torch.where(noise > 1, torch.zeros(()), below).bfloat16(), -torch.zeros(1, 300).bfloat16()]
    for logits in (*rows, torch.cat(rows)):
        for dtype in (torch.bfloat16, torch.float32):
            chosen = choose(logits.to(dtype), Sampling(), range(len(logits)), 0)
            assert chosen.tolist() == logits.double().numpy().argmax(-1).tolist()


LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.3, -3.0, 1.9, 0.9])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (1.5, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_drawn_from_the_right_distribution(temperature: float, top_p: float, dtype: torch.dtype) -> None:
    n = 20_000
    logits = LOGITS.to(dtype)
    drawn = torch.cat(
        [
            choose(logits.expand(n // 4, -1), Sampling(temperature, top_p), range(n // 4), position)
            for position in range(4)
        ]
    )
    probabilities = (logits.double() / temperature).softmax(0)
    ordered, order = probabilities.sort(descending=True)
    kept = order[(ordered.cumsum(0) - ordered) < top_p]  # the smallest set that reaches top_p
    expected = torch.zeros_like(probabilities)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    counts = torch.bincount(drawn, minlength=8)
    assert not counts[expected == 0].any()
    assert chisquare(counts[expected > 0], (expected[expected > 0] * n).numpy()).pvalue > 1e-3


def test_draws_of_neighbouring_positions_are_independent() -> None:
    logits, n = torch.zeros(4000, 4), 4000
    first, second = (choose(logits, Sampling(1.0), range(n), position) for position in (5, 6))
    pairs = torch.bincount(first * 4 + second, minlength=16)
    assert chisquare(pairs, [n / 16] * 16).pvalue > 1e-3


def test_rare_tokens_can_be_drawn_and_the_last_is_never_out_of_range() -> None:
    vocabulary = 49152
    logits = torch.zeros(64, vocabulary)
    seen = set(
        itertools.chain.from_iterable(
            choose(logits, Sampling(1.0), range(64), position).tolist() for position in range(10)
        )
    )
    assert len(seen) > 600
    assert max(seen) < vocabulary
    assert max(seen) > VOCABULARY
