"""Grammars of answers in llguidance's format, made from a JSON schema, a regular expression, or choices.

llguidance has abi3 wheels for Linux (x86-64, aarch64) and macOS (both), needs no other package, computes the mask of a
vocabulary of 49,000 tokens in some 20 microseconds, and supports JSON Schema, regular expressions and Lark grammars in
one parser. (xgrammar has separate wheels for each Python version, and requires triton and tvm-ffi.)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MAX_CHARACTERS = 256 * 1024
MAX_CHOICES = 10_000
MAX_PARTS = 300  # parts of a schema that are checked to locate a fault
_DEFINITIONS = ("$defs", "definitions")
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"  # bounded, because small models would repeat blanks forever


class GrammarError(ValueError):
    """The grammar cannot be used; the message says why in one line."""


@dataclass(frozen=True)
class Grammar:
    """A form that answers must have.

    Attributes:
        kind: the source: "json", "yaml", "regex", "choices" or "lark".
        text: the grammar in llguidance's format.
        schema: the JSON schema of the answer if there is one, for servers.
        unchecked: keywords of the schema that the grammar does not enforce.
    """

    kind: str
    text: str
    schema: dict[str, Any] | None = None
    unchecked: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of everything that affects the allowed tokens, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The description for documents."""
        return {"constrained": self.kind, "constraint_unchecked": list(self.unchecked)}


def json_object() -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"})


def json_schema(schema: dict[str, Any] | bool, *, strict: bool = True) -> Grammar:
    """JSON that is valid for a schema; blanks and line breaks are free, properties are in the schema's order.

    Args:
        strict: refuse keywords that a grammar cannot enforce (uniqueItems, not, if, …); otherwise they are ignored and
            listed in `unchecked`.

    Raises:
        GrammarError: it is not a schema, or cannot be used.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    try:
        text, notes = _compiled(schema, strict)
    except GrammarError as error:
        where = _place(schema, strict, str(error))
        raise GrammarError(f"{where}: {error}" if where else str(error)) from None
    return Grammar("json", text, schema, tuple(name for note in notes for name in re.findall(r'"([^"]+)"', note)))


def _compiled(schema: dict[str, Any], strict: bool) -> tuple[str, list[str]]:
    """A schema in llguidance's format, and warnings.

    Raises:
        GrammarError: it cannot be used.
    """
    from llguidance import LLMatcher

    options: Any = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
    try:
        text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    except (ValueError, RecursionError) as error:
        raise GrammarError(_line(str(error))) from None
    return text, _validated(text)


def _fault(schema: dict[str, Any], strict: bool) -> str:
    try:
        _compiled(schema, strict)
    except GrammarError as error:
        return str(error)
    return ""


def _place(schema: dict[str, Any], strict: bool, fault: str) -> str:
    """The place of a fault in a schema, as properties.name.items. llguidance does not report it, so this searches for
    the innermost part that has the same fault by itself. "" for the whole schema."""
    named = {name: schema[name] for name in _DEFINITIONS if name in schema}  # definitions that parts refer to
    shared = {} if _fault(named, strict) else named
    path, part, looked_at = "", schema, 0
    while True:
        for step, inner in _inner(part):
            looked_at += 1
            if looked_at > MAX_PARTS:
                return path
            if _fault({**shared, **inner}, strict) == fault:
                path, part = f"{path}.{step}".strip("."), inner
                break
        else:
            return path


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, schema) of the direct subschemas."""
    for name, value in schema.items():
        if name in ("properties", "patternProperties", *_DEFINITIONS) and isinstance(value, dict):
            parts = [(f"{name}.{key}", one) for key, one in value.items()]
        elif name in ("prefixItems", "anyOf", "allOf", "oneOf") and isinstance(value, list):
            parts = [(f"{name}[{index}]", one) for index, one in enumerate(value)]
        elif name in ("items", "additionalProperties", "contains", "not", "propertyNames", "if", "then", "else"):
            parts = [(name, value)]
        else:
            parts = []
        yield from ((place, one) for place, one in parts if isinstance(one, dict))


def regex(pattern: str) -> Grammar:
    """Text that matches a regular expression completely (Rust's syntax: no look-around, no back-references).

    Raises:
        GrammarError: it is invalid.
    """
    from llguidance import LLMatcher

    text = LLMatcher.grammar_from_regex(_bounded(pattern, "the regular expression"))
    _validated(text)
    return Grammar("regex", text)


def choices(texts: Sequence[str]) -> Grammar:
    """One of several texts.

    Raises:
        GrammarError: there are none, or an empty one.
    """
    if not texts or len(texts) > MAX_CHOICES or not all(texts):
        raise GrammarError(f"expected 1 to {MAX_CHOICES} texts, none of them empty")
    rules = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
    return Grammar("choices", lark(f"start: {rules}").text)


def lark(source: str, kind: str = "lark") -> Grammar:
    """A grammar in llguidance's dialect of Lark; the start rule is `start`.

    Raises:
        GrammarError: it is invalid.
    """
    from llguidance import LLMatcher

    text = LLMatcher.grammar_from_lark(_bounded(source, "the grammar"))
    _validated(text)
    return Grammar(kind, text)


def _bounded(text: str, what: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"{what} has more than {MAX_CHARACTERS} characters")
    return text


def _validated(text: str) -> list[str]:
    """The warnings about a grammar.

    Raises:
        GrammarError: llguidance cannot use it.
    """
    from llguidance import LLMatcher

    _bounded(text, "the schema")
    wrong, notes = LLMatcher.validate_grammar_with_warnings(text)
    if wrong:
        raise GrammarError(_line(notes[0]))
    return list(notes)


def _line(text: str) -> str:
    """The line of an error message that describes the fault: the one marked as an error, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it cannot be used"]
    marked = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (marked or lines)[0][:300]
