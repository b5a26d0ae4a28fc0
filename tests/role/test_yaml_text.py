"""Answers in YAML and in JSON, as models write them, read alike."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rescoldo.role.prompt import dump_yaml
from rescoldo.role.yaml_text import MAX_DEPTH, MAX_NODES, YamlRefusedError, parse_yaml

ANY = st.recursive(
    st.text(max_size=8) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: isinstance(value, list | dict))


@settings(max_examples=150, deadline=None)
@given(ANY, st.booleans(), st.sampled_from([None, 2, "\t"]))
def test_json_is_read_as_json(value: Any, ascii_only: bool, indent: Any) -> None:
    assert parse_yaml(json.dumps(value, ensure_ascii=ascii_only, indent=indent)) == value


def test_json_scalars_are_the_text_that_was_written() -> None:
    assert parse_yaml('{"a": [1, -2.50, 1e5, true, false, null, NaN]}') == {
        "a": ["1", "-2.50", "1e5", "true", "false", None, "NaN"]
    }
    assert parse_yaml('{"a": ' + "9" * 10_000 + "}") == {"a": "9" * 10_000}


def test_escaped_pairs_in_yaml() -> None:
    """Items in JSON under YAML keys; a backslash that is escaped escapes nothing."""
    assert parse_yaml('fr:\n- {"id": "FR001", "d": "\\ud83d\\ude42!"}\n') == {"fr": [{"id": "FR001", "d": "🙂!"}]}
    assert parse_yaml('a: "\\\\ud83d\\\\ude42"') == {"a": "\\ud83d\\ude42"}


def test_half_a_pair_can_be_written() -> None:
    found = parse_yaml('{"a\\udc00": ["\\ud83d"]}')
    json.dumps(found, ensure_ascii=False).encode()
    assert found == {"a\ufffd": ["\ufffd"]}


@pytest.mark.parametrize(
    "text",
    ["---\na: 1\nb: x\n---\n", "---\na: 1\nb: x\n---", "---\n---\na: 1\nb: x\n", "a: 1\nb: x\n...\n---\n# end\n"],
)
def test_front_matter_is_one_document(text: str) -> None:
    assert parse_yaml(text) == {"a": "1", "b": "x"}


@pytest.mark.parametrize(
    "text", ["a: 1\n---\nb: 2", "---\na: 1\n---\nSome words.", "a: &x 1\n---\nb: *x", "--- a\n--- b\n---\n"]
)
def test_two_documents_are_refused(text: str) -> None:
    with pytest.raises(YamlRefusedError):
        parse_yaml(text)


MERGES = [
    "b: &b {p: High, id: x}\nl:\n- <<: *b\n  id: y\n- id: z\n  <<: *b",
    "a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {<<: [*a, *b], z: 4}",
    "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b}",
    "c: {<<: {x: k}, x: m}",
    "c: {'<<': q}",
]


@pytest.mark.parametrize("text", MERGES)
def test_merge_keys_as_yaml_has_them(text: str) -> None:
    assert parse_yaml(text) == yaml.load(text, Loader=_Texts)


class _Texts(yaml.SafeLoader):
    """The reference: PyYAML's own merging, with scalars as text."""


_Texts.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}


@pytest.mark.parametrize("text", ["<<: 3", "<<: [1]", "<<: ~", "a: {<<: [[x]]}"])
def test_what_cannot_be_merged_is_refused(text: str) -> None:
    with pytest.raises(YamlRefusedError, match="merge key"):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
        '{"a":' * 100_000,
        "[" + "1," * MAX_NODES + "1]",
        '"' + "\\ud83d\\ude42" * 20_000,
        '"' + "\\" * 250_000,
        "{" + "\\ud83d" * 40_000,
        "a: &a {x: 1}\n" + "".join(f"k{i}: {{<<: *a}}\n" for i in range(5000)),
    ],
)
def test_bounds(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(YamlRefusedError):
        parse_yaml(text)
    assert time.monotonic() - started < 2


@given(
    st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=6)
)
@example(["a\x85b", {"\x85": "\u2028 \u2029"}, "a\nb", ""])
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse_yaml(dump_yaml(value)) == value
