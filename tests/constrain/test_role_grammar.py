"""A role's grammar admits what the role teaches, and nothing that its schema would find fault with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescoldo.constrain import Grammar, GrammarError, lark
from rescoldo.constrain.matcher import Compiler
from rescoldo.data import read_records
from rescoldo.data.tokenize import stop_ids
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from rescoldo.role.grammar import _YamlWriter, role_grammar
from rescoldo.role.prompt import dump_yaml
from rescoldo.role.schema import Schema
from rescoldo.role.yaml_text import parse_yaml
from tests.constrain.common import answer, tiny

ROOT = Path(__file__).parents[2]
ROLES = ["ba", "po", "qa", "architect"]


def admits(grammar: Grammar, text: str) -> str:
    """ "" where the grammar admits a text as a whole, else what it admits of it."""
    loaded = tiny()
    constraint = loaded.constraint(grammar)
    stops = sorted(stop_ids(loaded.tokenizer))
    tokens = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    for place, token in enumerate([*tokens, stops[0]]):
        logits = torch.zeros(loaded.model.config.vocab_size)
        error = constraint.mask_(logits)
        if error or logits[token] < 0:
            return f"{error}…{loaded.tokenizer.decode(tokens[:place])[-60:]!r}"
        if place < len(tokens):
            constraint.accept(token)
    return ""


def yaml_grammar(schema: dict[str, Any]) -> Grammar:
    return lark(_YamlWriter(Schema(schema)).grammar(), "yaml")


@pytest.mark.parametrize("name", ROLES)
def test_what_a_role_teaches_is_admitted(name: str) -> None:
    role = get_role(name)
    grammar = role_grammar(role)
    files = [ROOT / f"src/rescoldo/role/builtin/{name}/samples.jsonl"]
    files += [ROOT / "artifacts/synthetic/ba_val_v2_fixed.jsonl"] if name == "ba" else []
    records = [record for file in files for record in read_records(file, role)]
    assert len(records) >= 2
    for record in records[:2]:
        target = role.target(record)
        assert admits(grammar, target) == ""
        assert admits(grammar, target + "\n") == ""
        indented = re.sub(r"(?m)^(- |  (?! ))", r"  \1", target)
        assert parse_yaml(indented) == parse_yaml(target)
        assert admits(grammar, indented) == "" or name in ("po", "qa"), "lists within lists may be indented either way"


@pytest.mark.parametrize("name", ["ba", "po"])
@pytest.mark.parametrize("seed", range(1))
def test_what_is_admitted_is_valid(name: str, seed: int) -> None:
    """Where the random model comes to an end; else so far as it went, no fault was possible."""
    role = get_role(name)
    grammar = role_grammar(role)
    text, row = answer(grammar, seed=seed, n=600)
    if row.ended:
        value, fault = role._parse(text)
        assert fault == ""
        assert role.schema is not None
        assert {finding.code for finding in role.schema.findings(value)} <= {"x-unique", "uniqueItems"}
    else:
        assert len(row.tokens) == 600


TEXTS = st.builds(
    lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
    st.integers(0, 5), st.integers(1, 12),
)  # fmt: skip
SCALARS = st.one_of(
    TEXTS,
    st.sampled_from([
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}, {"type": "string", "pattern": "a'?b", "maxLength": 9},
        {"enum": ["High", "Won't", "yes: no", "null", "3", "# x", "- y"]}, {"enum": [1, 2.5, True, None]},
        {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"const": "x y"},
    ]),
)  # fmt: skip


def _list(item: Any, least: int, more: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least, "maxItems": max(1, least + more)}


def _object(parts: dict[str, Any], some: int) -> dict[str, Any]:
    return {"type": "object", "properties": parts, "required": sorted(parts)[:some]}


KEYS = st.sampled_from(["title", "a_b", "x-y", "two words", "C3"])
PARTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(_list, inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(_object, st.dictionaries(KEYS, inner, min_size=1, max_size=3), st.integers(0, 3)),
    ),
    max_leaves=5,
)
DOCUMENTS = st.builds(_object, st.dictionaries(KEYS, PARTS, min_size=1, max_size=4), st.integers(0, 4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS, st.integers(0, 1000))
def test_yaml_of_any_schema_is_read_back_as_a_valid_value(document: dict[str, Any], seed: int) -> None:
    text, row = answer(yaml_grammar(document), seed=seed, n=3000)
    assert row.ended, text
    schema = Schema(document)
    value = schema.conform(parse_yaml(text))
    assert schema.findings(_typed(value, document)) == [], text


def _typed(value: Any, schema: dict[str, Any]) -> Any:
    """YAML is read as text: what stands for a listed number, truth value or null is that."""
    if "enum" in schema or "const" in schema:
        listed = schema.get("enum", [schema.get("const")])
        return next((one for one in listed if value == (None if one is None else _plain(one))), value)
    if isinstance(value, dict):
        return {name: _typed(part, schema["properties"][name]) for name, part in value.items()}
    return [_typed(item, schema["items"]) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else dump_yaml(value)


TRICKY = [
    "plain text", "ends: in", "a colon:", "C# and F #", "10:30 at http://x.y/z#a", "- a dash", "-5 degrees", "null",
    "~", "'", '"', "it's", "x # y", "# x", "[list]", "{a}", "& b", "*c", "! d", "| e", "> f", "% g", "@h", "`i`", "?j",
    "? k", ":l", "a, b", "Ünïcode – 漢字 😀", "tab\there", "zero\u200bwidth", "no\u00a0break", "true", "3.5",
    "2024-01-01", "---", "...", "<<", "=",
]  # fmt: skip


@pytest.mark.parametrize("text", TRICKY)
def test_texts_as_yaml_writes_them(text: str) -> None:
    """In the form in which training examples have them, and in single quotes; both are read back as the text."""
    grammar = yaml_grammar(_object({"t": {"type": "string"}}, 1))
    for written in (dump_yaml({"t": text}), "t: '" + text.replace("'", "''") + "'"):
        if "\t" in text or "\\u" in written or "\\x" in written:
            continue  # escapes: another form of the same text is there
        assert parse_yaml(written) == {"t": text}
        assert admits(grammar, written) == ""


@pytest.mark.parametrize(
    "written",
    ["t: a: b", "t: a #b", "t: a:", "t: null", "t: ~", "t: - a", "t: 'a", "t: 'a'b'", 't: "a', "t: [a]", "t: a ",
     "t: &a b", "t:", "t: |\n  a", "t: a\n\n", "t: a\nu: b", "t: %a", "t: a\u2028b", "t: a\x07b", "```\nt: a\n```"],
)  # fmt: skip
def test_texts_that_mean_something_else_are_not_admitted(written: str) -> None:
    assert admits(yaml_grammar(_object({"t": {"type": "string", "minLength": 1}}, 1)), written) != ""


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string"}, "has no YAML grammar"),
        ({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}}, "a: anyOf is not supported"),
        ({"type": "object", "properties": {"a": {"type": ["string", "null"]}}}, "a: expected one type"),
        ({"type": "object", "properties": {"a": {}}}, "a: expected one type"),
        ({"type": "object", "properties": {"a: b": {"type": "null"}}}, "cannot be a plain key"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True}, "it names"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a$b"}}}, "anchors in its middle"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, "look-around"),
        ({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "null"}, "maxItems": 0}}}, "no it"),
        ({"type": "object"}, "expected properties"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}}}, "deep"),
    ],
)  # fmt: skip
def test_schemas_that_cannot_be_yaml(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        yaml_grammar(schema)


def test_a_role_in_json_and_one_without_a_schema(tmp_path: Path) -> None:
    role = {
        "name": "cards", "input": "topic", "answer": "card", "serialization": "json", "prompt": "{{ topic }}",
        "metric": "valid",
        "schema": {
            "type": "object", "required": ["kind"], "properties": {
                "kind": {"enum": ["a", "b"]},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "uniqueItems": True,
                         "x-unique": "id", "maxItems": 2},
            },
        },
    }  # fmt: skip
    (tmp_path / "cards.yaml").write_text(json.dumps(role))
    grammar = role_grammar(get_role(str(tmp_path / "cards.yaml")))
    assert (grammar.kind, set(grammar.unchecked)) == ("json", {"uniqueItems", "x-unique"})
    value = json.loads(answer(grammar, seed=1)[0])
    assert value["kind"] in ("a", "b")
    assert value.keys() <= {"kind", "tags"}, "no key that the schema does not name"
    with pytest.raises(RescoldoError, match="the role has no schema"):
        role_grammar(get_role("generic"))


def test_the_compilers_masks_are_those_of_the_grammar_on_a_wide_vocabulary() -> None:
    """Each token that is allowed is one of the texts that may come next, and the other way round."""
    loaded = tiny()
    size = loaded.model.config.vocab_size
    compiler = Compiler(loaded.tokenizer, size, stop_ids(loaded.tokenizer))
    pattern = re.compile("(ab|cd|c1)[0-9]{2}")
    logits = torch.zeros(size)
    assert compiler.start(lark("start: /(ab|cd|c1)[0-9]{2}/")).mask_(logits) == ""
    allowed = {loaded.tokenizer.decode([index]) for index in torch.nonzero(logits == 0)[:, 0].tolist()}
    texts = {loaded.tokenizer.decode([index]) for index in range(3, len(loaded.tokenizer))}
    wholes = [f"{head}{digits:02}" for head in ("ab", "cd", "c1") for digits in range(100)]
    assert allowed == {text for text in texts if any(whole.startswith(text) for whole in wholes)}
    assert all(pattern.fullmatch(whole) for whole in wholes)
