"""Constrained answers of a random model are what was asked for; rows do not disturb each other; limits are errors."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescoldo.constrain import Grammar, GrammarError, choices, json_object, json_schema, lark, regex
from rescoldo.constrain.matcher import Compiler
from rescoldo.data.tokenize import stop_ids
from rescoldo.engine.generate import Decoder, choose
from rescoldo.engine.types import Sampling
from rescoldo.models.loaded import load_for_inference
from rescoldo.serve.talk import reply
from tests.constrain.common import answer, ids, text_of, tiny


def _text(least: int, more: int) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": least + more}


NAMES = st.sampled_from(["a", "b name", "ключ", 'q"uote', "x/y"])
LEAVES = st.one_of(
    st.builds(_text, st.integers(0, 4), st.integers(0, 9)),
    st.sampled_from([
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}, {"type": "string", "format": "date"},
        {"enum": ["High", "Low", 3, None, "a: b"]}, {"const": {"k": [1, "two"]}}, {"type": "boolean"}, {"type": "null"},
        {"type": "integer", "minimum": -7, "maximum": 120}, {"type": "number", "minimum": 0, "maximum": 1},
    ]),
)  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda item, a, b: {"type": "array", "items": item, "minItems": a, "maxItems": a + b},
            inner, st.integers(0, 2), st.integers(0, 2),
        ),
        st.builds(
            lambda parts, some: {
                "type": "object", "properties": parts, "required": sorted(parts)[: some + 1],
                "additionalProperties": False,
            },
            st.dictionaries(NAMES, inner, min_size=1, max_size=3), st.integers(0, 2),
        ),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
    ),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.integers(0, 1000))
def test_constrained_answers_are_valid_whatever_the_schema(schema: dict[str, Any], seed: int) -> None:
    text, row = answer(json_schema(schema), seed=seed)
    assert row.ended, text
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(("part", "what"), [
    ({"type": "strin"}, "Invalid type: strin"), ({"type": "string", "pattern": "("}, "unclosed group"),
    ({"$ref": "#/$defs/none"}, "none"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
])  # fmt: skip
def test_the_place_of_a_fault_in_a_schema(part: dict[str, Any], what: str) -> None:
    fine = {"$defs": {"ok": {"type": "null"}}, "properties": {"first": {"$ref": "#/$defs/ok"}}, "type": "object"}
    for path, schema in (
        ("properties.a.items.anyOf[1]: ", {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/ok"}, part]}}),
        ("properties.a: ", part),
    ):
        with pytest.raises(GrammarError, match=what) as caught:
            json_schema({**fine, "required": ["a"], "properties": {**fine["properties"], "a": schema}})  # type: ignore[dict-item]
        assert str(caught.value).startswith(path), caught.value
    with pytest.raises(GrammarError, match=r"^\$defs\.ok: ") as caught:
        json_schema({"$defs": {"ok": {"type": "nul"}}, "type": "array", "items": {"$ref": "#/$defs/ok"}})
    with pytest.raises(GrammarError, match=r"^[^:]*$|^Inv"):
        json_schema({"type": "nul"})


@pytest.mark.parametrize("seed", range(8))
def test_regular_expressions_choices_and_lark(seed: int) -> None:
    text, row = answer(regex("(ab|c)[0-9]{2,4}é?"), seed=seed)
    assert row.ended
    assert re.fullmatch("(ab|c)[0-9]{2,4}é?", text)
    options = ["yes", "no", "maybe: 50 %", 'noch\nzwei "Zeilen"']
    assert answer(choices(options), seed=seed)[0] in options
    text, row = answer(lark('start: "- " item ("\\n- " item){1,3}\nitem: /[a-z]{1,5}/'), seed=seed)
    assert re.fullmatch("- [a-z]{1,5}(\n- [a-z]{1,5}){1,3}", text)
    assert row.ended


def test_an_object_without_a_schema() -> None:
    """It may go on for ever; as far as it goes it is the beginning of an object."""
    text, row = answer(json_object(), n=60)
    assert text.lstrip().startswith("{")
    assert isinstance(json.loads(text), dict) if row.ended else len(row.tokens) == 60


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_that_were_valid_stay_as_they_were(temperature: float) -> None:
    """Token by token, also where the tokens are not those that the tokenizer would make of the text."""
    compared, tokenizer = 0, tiny().tokenizer
    for number in range(80):
        prompt = f"prompt {number}"
        free, row = answer(None, temperature=temperature, n=6, prompt=prompt)
        if "\ufffd" in free or any(
            token >= len(tokenizer) or token in tokenizer.all_special_ids for token in row.tokens
        ):
            continue  # bytes of no character, or tokens of no text: no grammar has them
        for grammar in (regex("(?s:.*)"), choices([free + " and more", "another"])):
            held, same = answer(grammar, temperature=temperature, n=6, prompt=prompt)
            assert (held, same.tokens) == (free, row.tokens)
            compared += 1
    assert compared > 10


@pytest.mark.slow
def test_valid_answers_of_a_real_model_stay_as_they_were() -> None:
    loaded = load_for_inference("sample:smollm2", "bf16")
    messages = [{"role": "user", "content": "Name three colours as a JSON list of strings, nothing else."}]
    free = reply(loaded, messages, Sampling(max_new_tokens=60))
    shapes = [regex("(?s:.*)"), choices([free.text, "another"])]
    for grammar in shapes:
        held = reply(loaded, messages, Sampling(max_new_tokens=60), grammar=grammar)
        assert (held.text, held.ended, held.tokens) == (free.text, free.ended, free.tokens)
    listed = {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 3, "maxItems": 3}
    held = reply(loaded, messages, Sampling(max_new_tokens=60), grammar=json_schema(listed))
    assert held.ended
    assert len(json.loads(held.text)) == 3


def test_rows_have_their_own_state_beside_rows_without_any() -> None:
    """Mixed in one decoder, admitted at different times: each is what it is alone."""
    loaded = tiny()
    grammars: list[Grammar | None] = [
        regex("[a-f]{20}"), None, json_schema({"enum": ["red", "green"]}), regex("[0-9]{5,30}"), None,
        choices(["x", "y"]),
    ]  # fmt: skip
    samplings = [Sampling(1.0 if i % 2 else 0.0, 1.0, 30, i) for i in range(len(grammars))]
    prompts = [ids(f"prompt {i}") for i in range(len(grammars))]
    alone = [
        answer(g, seed=s.seed, temperature=s.temperature, n=30, prompt=f"prompt {i}")[1].tokens
        for i, (g, s) in enumerate(zip(grammars, samplings, strict=True))
    ]
    decoder = Decoder(loaded.model, stop_ids(loaded.tokenizer))
    found: dict[int, list[int]] = {i: [] for i in range(len(grammars))}
    waiting = list(range(len(grammars)))
    while waiting or len(decoder):
        for i in waiting[:2]:
            grammar = grammars[i]
            decoder.admit(i, prompts[i], samplings[i], loaded.constraint(grammar) if grammar else None)
        waiting = waiting[2:]
        for _ in range(3):
            for step in decoder.step():
                assert not step.error
                if step.token is not None:
                    found[step.key].append(step.token)
    assert list(found.values()) == alone


def test_a_grammar_that_cannot_go_on_ends_its_row_alone() -> None:
    loaded = tiny()

    class Stuck:
        def mask_(self, logits: torch.Tensor) -> str:
            return "stuck"

        def allows(self, token: int) -> bool:
            return False

        def accept(self, token: int) -> None:
            raise AssertionError

    decoder = Decoder(loaded.model, frozenset())
    decoder.admit(1, ids("one"), Sampling(max_new_tokens=5), Stuck())
    decoder.admit(2, ids("two"), Sampling(max_new_tokens=5))
    first = {step.key: step for step in decoder.step()}
    assert (first[1].token, first[1].last, first[1].error) == (None, True, "stuck")
    assert len(decoder) == 1
    count = 1
    while len(decoder):
        count += len(decoder.step())
    assert count == 5


def test_a_grammar_made_to_be_slow_is_given_up_and_does_no_harm_to_the_next_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rescoldo.constrain import matcher

    loaded = tiny()
    monkeypatch.setitem(matcher._LIMITS, "step_lexer_fuel", 10)
    compiler = Compiler(loaded.tokenizer, loaded.model.config.vocab_size, stop_ids(loaded.tokenizer))
    slow = regex("(.*a){30}b|.{500,900}c")
    logits = torch.zeros(loaded.model.config.vocab_size)
    assert "too complex" in compiler.start(slow).mask_(logits)
    monkeypatch.setitem(matcher._LIMITS, "step_lexer_fuel", 2_000_000)
    assert compiler.start(slow).mask_(logits) == ""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS | st.just(None), st.integers(0, 1000))
def test_one_token_is_allowed_where_the_mask_allows_it(schema: dict[str, Any] | None, seed: int) -> None:
    """A greedy row asks for its most probable token alone: all along an answer, and for every token there is."""
    loaded, drawn = tiny(), random.Random(seed)
    grammar = regex("(a|bc|[0-9]+é?)*") if schema is None else json_schema(schema)
    constraint, size = loaded.constraint(grammar), loaded.model.config.vocab_size
    stops = stop_ids(loaded.tokenizer)
    for _ in range(12):
        one_by_one = [constraint.allows(token) for token in range(size)]
        logits = torch.zeros(size)
        assert constraint.mask_(logits) == ""
        differ = {t for t in range(size) if one_by_one[t] != bool(logits[t] == 0)}
        assert differ <= stops, "where nothing but the end may come, the mask alone says so"
        assert not any(one_by_one[token] for token in differ)
        going_on = [token for token in range(size) if one_by_one[token] and token not in stops]
        if not going_on:
            break
        constraint.accept(drawn.choice(going_on))


def test_sampled_tokens_come_with_the_probabilities_of_the_masked_distribution() -> None:
    """Whether the first choice was allowed or not: against the softmax of the masked logits, by a chi-squared test."""
    from scipy.stats import chisquare

    loaded, prompt, n = tiny(), ids("Say it"), 1000
    grammar = regex("[a-m](?s:.*)|[0-9A-Z]")
    free = Decoder(loaded.model, stop_ids(loaded.tokenizer), prompt[:-1])
    free.admit(0, prompt, Sampling(temperature=0.9, max_new_tokens=1))
    logits = loaded.model.head.logits(torch.stack(free._hidden))[0].float() / 0.9
    before = logits.softmax(-1)
    assert loaded.constraint(grammar).mask_(logits) == ""
    wanted = logits.softmax(-1)
    assert 0.02 < float(before[wanted > 0].sum()) < 0.9, "both ways are taken"
    decoder = Decoder(loaded.model, stop_ids(loaded.tokenizer), prompt[:-1])
    for seed in range(n):
        constraint = loaded.constraint(grammar)
        decoder.admit(seed, prompt, Sampling(temperature=0.9, max_new_tokens=1, seed=seed), constraint)
    drawn = torch.tensor([step.token for step in decoder.step()])
    groups = torch.arange(len(wanted)) % 9
    expected = torch.zeros(9).index_add_(0, groups, wanted).double()
    seen = torch.bincount(groups[drawn], minlength=9)
    assert chisquare(seen, n * expected / expected.sum()).pvalue > 1e-4


def test_a_row_is_masked_only_where_its_free_choice_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same answer as that of masks at every step."""
    from rescoldo.constrain.matcher import Constraint

    masked = 0
    mask = Constraint.mask_

    def counting(self: Constraint, logits: torch.Tensor) -> str:
        nonlocal masked
        masked += 1
        return mask(self, logits)

    monkeypatch.setattr(Constraint, "mask_", counting)
    listed = json_schema({"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 3, "maxItems": 3})
    questions = [(listed, 80, "Say it"), *((regex("(?s:.*)"), 6, f"prompt {n}") for n in range(4))]
    some = [answer(grammar, temperature=0, n=n, prompt=prompt)[1].tokens for grammar, n, prompt in questions]
    seldom, masked = masked, 0
    monkeypatch.setattr(Constraint, "allows", lambda *_: False)
    assert [answer(grammar, temperature=0, n=n, prompt=prompt)[1].tokens for grammar, n, prompt in questions] == some
    assert 0 < seldom < masked
    monkeypatch.undo()
    monkeypatch.setattr(Constraint, "mask_", counting)
    masked = 0
    _, row = answer(regex("(?s:.*)"), temperature=1.0, n=20)
    assert masked < len(row.tokens), "also where it is sampled"


def test_tokens_beyond_the_tokenizer_are_never_chosen() -> None:
    """Many models have more rows of logits than tokens."""
    loaded = tiny()
    size = loaded.model.config.vocab_size
    compiler = Compiler(loaded.tokenizer, size + 100, stop_ids(loaded.tokenizer))
    logits = torch.zeros(size + 100)
    assert compiler.start(regex("(?s:.*)")).mask_(logits) == ""
    assert bool((logits[size:] == -torch.inf).all())
    assert bool((logits[sorted(stop_ids(loaded.tokenizer))] == 0).all())
    special = set(loaded.tokenizer.all_special_ids) - stop_ids(loaded.tokenizer)
    assert all(logits[index] == -torch.inf for index in special), "control tokens are not text"


def test_stop_tokens_are_allowed_where_the_grammar_may_end_and_only_there() -> None:
    loaded = tiny()
    stops = sorted(stop_ids(loaded.tokenizer))
    constraint = loaded.constraint(regex("ab?"))
    for text, may_stop in (("a", False), ("b", True), ("", True)):
        logits = torch.zeros(loaded.model.config.vocab_size)
        assert constraint.mask_(logits) == ""
        assert all((logits[stop] == 0) == may_stop for stop in stops)
        if text:
            (token,) = ids(text)
            constraint.accept(token)
    assert int((logits == 0).sum()) == len(stops), "nothing but the end"


def test_the_largest_uniform_number_draws_no_impossible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rescoldo.engine.generate.mix_key", lambda *_: 2**32 - 1)
    logits = torch.full((1, 50), -torch.inf)
    logits[0, [7, 9]] = torch.tensor([1.0, 0.5])
    assert int(choose(logits, Sampling(temperature=1.0), [1], 0)) in (7, 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: json_schema({"type": "objekt"}), "objekt"),
        (lambda: json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (lambda: json_schema({"$ref": "https://example.org/schema"}), "not present"),
        (lambda: json_schema({"type": "string", "minLength": 9, "maxLength": 3}), "minLength"),
        (lambda: json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (lambda: regex("[a"), "unclosed"),
        (lambda: regex("a" * 300_000), "more than"),
        (lambda: choices([]), "expected 1 to"),
        (lambda: choices(["a", ""]), "none of them empty"),
        (lambda: lark("start: MISSING"), "MISSING"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_said_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(GrammarError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_lenient_grammar_does_not_check_is_listed() -> None:
    schema = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "maxItems": 3, "not": {"const": []}}
    grammar = json_schema(schema, strict=False)
    assert set(grammar.unchecked) == {"uniqueItems", "not"}
    assert all(item in ("a", "b") for item in json.loads(answer(grammar)[0]))
    assert text_of([]) == ""
