"""Grammars of a role's answers for constrained decoding: JSON, or the role's own YAML.

The YAML grammar admits what the role writes into training examples (one line a value, keys in the schema's order), and
equivalent variants that models write: lists indented or not; plain, single-quoted or double-quoted values. Whatever
the grammar admits is parsed as a value that is valid for the schema, except for the keywords in `Grammar.unchecked`,
which it cannot enforce (for example that no two items have the same ID).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rescoldo.constrain.grammar import Grammar, GrammarError, json_schema, lark
from rescoldo.errors import RescoldoError
from rescoldo.role.role import Role
from rescoldo.role.schema import MAX_DEPTH, Schema

_MAX_RULES = 5000
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format", "contentEncoding"}
    | {"contentMediaType", "$comment", "$defs", "definitions", "$schema", "$id", "$anchor"}
)
_CHECKED = {  # the keywords that the grammar enforces, by type
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern"}),
    "integer": frozenset[str](),
    "number": frozenset[str](),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_STRUCTURAL = frozenset(  # other keywords that describe a value's structure
    {"anyOf", "oneOf", "allOf", "prefixItems", "patternProperties", "unevaluatedProperties", "unevaluatedItems"}
    | {"$dynamicRef", "propertyNames", "minProperties", "maxProperties"}
)

# Classes of characters on one line: what YAML calls printable, without tabs and its line breaks (`_NONE`).
_NONE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff"
_INDICATORS = r"\-?:,\[\]{}#&*!|>'\x22%@\x60"
_CHARACTER, _WORD = f"[^{_NONE}]", f"[^ {_NONE}]"
_QUOTED, _DOUBLE = f"[^'{_NONE}]", rf"[^\x22\\{_NONE}]"
# A plain scalar: does not begin with an indicator, contains neither ": " nor " #", does not end in ":" or a blank.
_FIRST = rf"([^{_INDICATORS} {_NONE}]|[\-?:]{_WORD})"
_PLAIN = rf"({_FIRST}({_WORD}*[^ :{_NONE}])?)( +([^ #:{_NONE}]|[^ #{_NONE}]{_WORD}*[^ :{_NONE}]))*"
_NULL_WORDS = ("null", "Null", "NULL")
_NULLS = f"~/{'|'.join(_NULL_WORDS)}|~/"


def role_grammar(role: Role) -> Grammar:
    """The grammar of a role's answers. Keys that the schema does not name are excluded.

    Raises:
        RescoldoError: the role has no schema, or one that cannot be turned into a grammar.
    """
    if role.schema is None:
        raise RescoldoError(
            "answers cannot be constrained: the role has no schema", where=role.source, fix="leave out --constrained"
        )
    try:
        return _GRAMMARS[role.spec.serialization](role.schema)
    except GrammarError as error:
        raise RescoldoError(f"answers cannot be constrained: {error}", where=f"{role.source}, schema") from None


def _json_grammar(schema: Schema) -> Grammar:
    found = json_schema(_closed(schema.document), strict=False)
    return replace(found, unchecked=(*found.unchecked, *_own(schema.document)))


def _yaml_grammar(schema: Schema) -> Grammar:
    writer = _YamlWriter(schema)
    return Grammar("yaml", lark(writer.grammar()).text, _closed(schema.document), tuple(writer.unchecked))


_GRAMMARS: Mapping[str, Callable[[Schema], Grammar]] = {"json": _json_grammar, "yaml": _yaml_grammar}


def _closed(schema: Any) -> Any:
    """A schema whose objects allow only the properties that they name, as in the role's own answers; without x-…
    keywords, which servers need not know."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed: dict[str, Any] = {}
    for name, part in schema.items():
        if name in ("enum", "const", "default", "examples"):
            closed[name] = part
        elif name in ("properties", "$defs", "definitions", "patternProperties") and isinstance(part, dict):
            closed[name] = {key: _closed(value) for key, value in part.items()}
        elif not name.startswith("x-"):
            closed[name] = _closed(part)
    if "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _own(schema: Any) -> tuple[str, ...]:
    """The x-… keywords in a schema that are this program's own."""
    if isinstance(schema, list):
        return tuple(dict.fromkeys(name for part in schema for name in _own(part)))
    if not isinstance(schema, dict):
        return ()
    here = ("x-unique",) if isinstance(schema.get("x-unique"), str) else ()
    return tuple(dict.fromkeys([*here, *(name for part in schema.values() for name in _own(part))]))


class _YamlWriter:
    """Writes the rules of one schema, in llguidance's dialect of Lark."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}  # expression → name
        self._terminals: dict[str, str] = {}
        self.unchecked: dict[str, None] = {}  # keywords

    def grammar(self) -> str:
        """The whole grammar.

        Raises:
            GrammarError: the schema has something that the grammar cannot express.
        """
        kind, schema = self._kind(self._schema.document, "")
        if kind not in ("object", "array"):
            raise GrammarError(f"an answer that is {kind} has no YAML grammar")
        body = self._block(kind, schema, 0, "", 0)
        lines = [f'start: {body} "\\n"?', *(f"{name}: {text}" for text, name in self._rules.items())]
        return "\n".join([*lines, *(f"{name}: {text}" for text, name in self._terminals.items())])

    def _kind(self, schema: Any, path: str) -> tuple[str, dict[str, Any]]:
        """(type, schema) with references followed; "enum" where the values are listed."""
        schema = self._schema._resolve(schema)
        if schema is None:
            raise GrammarError(f"{path or 'the schema'} refers to nothing")
        if "enum" in schema or "const" in schema:
            return "enum", schema
        odd = sorted(_STRUCTURAL & schema.keys())
        if odd:
            raise GrammarError(f"{path or 'the schema'}: {odd[0]} is not supported with YAML")
        kind = schema.get("type") or ("object" if "properties" in schema else "array" if "items" in schema else None)
        if not isinstance(kind, str):
            raise GrammarError(f"{path or 'the schema'}: expected one type, or enum")
        self.unchecked.update(
            dict.fromkeys(name for name in schema if name not in _ANNOTATIONS | _CHECKED[kind] | {"type", "$ref"})
        )
        return kind, schema

    def _rule(self, text: str) -> str:
        if text not in self._rules:
            if len(self._rules) >= _MAX_RULES:
                raise GrammarError(f"more than {_MAX_RULES} rules")
            self._rules[text] = f"r{len(self._rules)}"
        return self._rules[text]

    def _terminal(self, text: str) -> str:
        return self._terminals.setdefault(text, f"T{len(self._terminals)}")

    def _block(self, kind: str, schema: dict[str, Any], indent: int, path: str, depth: int) -> str:
        """A mapping or list that begins at the current position, in column `indent`; it ends without a line break."""
        if depth > MAX_DEPTH:
            raise GrammarError("nested too deeply")
        make = self._mapping if kind == "object" else self._list
        return self._rule(make(schema, indent, path, depth))

    def _mapping(self, schema: dict[str, Any], indent: int, path: str, depth: int) -> str:
        properties: dict[str, Any] = schema.get("properties", {})
        if not isinstance(properties, dict) or schema.get("additionalProperties", False) is not False:
            raise GrammarError(f"{path or 'the schema'}: only the properties that it names can be written")
        required = set(schema.get("required", ()))
        first: list[str] = []
        if not properties or required - properties.keys():
            raise GrammarError(f"{path or 'the schema'}: expected properties, and the required ones among them")
        # `rest` is what may follow each property: the first property written has no line break before it
        rest = ""
        for name, part in reversed(properties.items()):
            entry = self._entry(name, part, indent, f"{path}.{name}".strip("."), depth)
            after = f" {rest}" if rest else ""
            first.insert(0, f"{entry}{after}")
            line = f"{_literal(chr(10) + ' ' * indent)} {entry}"
            if name in required:
                first = first[:1]
                rest = self._rule(f"{line}{after}")
            else:
                rest = self._rule(f"({line})?{after}")
        return " | ".join(first)

    def _entry(self, name: str, part: Any, indent: int, path: str, depth: int) -> str:
        """key: value"""
        key = self._key(name)
        kind, schema = self._kind(part, path)
        if kind not in ("object", "array"):
            return f"{_literal(key + ': ')} {self._scalar(kind, schema, path)}"
        options = []
        for deeper in (0, 2) if kind == "array" else (2,):  # a list may begin in its key's own column
            at = indent + deeper
            body = self._block(kind, schema, at, path, depth + 1)
            options.append(f"{_literal(key + ':' + chr(10) + ' ' * at)} {body}")
        if kind == "array" and not schema.get("minItems"):
            options.append(_literal(key + ": []"))
        return self._rule(" | ".join(options))

    def _list(self, schema: dict[str, Any], indent: int, path: str, depth: int) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most is not None and most < max(least, 1):
            raise GrammarError(f"{path or 'the schema'}: a list without items cannot be written")
        kind, item = self._kind(schema.get("items", {}), f"{path}[]")
        if kind in ("object", "array"):
            body = self._block(kind, item, indent + 2, f"{path}[]", depth + 1)
        else:
            body = self._scalar(kind, item, f"{path}[]")
        first = f"{_literal('- ')} {body}"
        if most == 1:
            return first
        more = f"{max(least, 1) - 1},{'' if most is None else most - 1}"
        return f"{first} ({_literal(chr(10) + ' ' * indent + '- ')} {body}){{{more}}}"

    def _key(self, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_ -]{0,99}(?<! )", name) or name in _NULL_WORDS:
            raise GrammarError(f"the property {name[:60]!r} cannot be a plain key")
        return name

    def _scalar(self, kind: str, schema: dict[str, Any], path: str) -> str:
        if kind == "enum":
            return self._enum(schema, path)
        if kind == "string":
            return self._string(schema, path)
        if kind == "boolean":
            return '("true" | "false")'
        if kind == "null":
            return '"null"'
        if kind == "integer":
            return self._terminal("/-?(0|[1-9][0-9]{0,17})/")
        return self._terminal(r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17}[0-9])?/")

    def _enum(self, schema: dict[str, Any], path: str) -> str:
        from rescoldo.role.prompt import dump_yaml

        values = [schema["const"]] if "const" in schema else schema["enum"]
        texts: dict[str, None] = {}
        for value in values:
            if isinstance(value, list | dict):
                raise GrammarError(f"{path}: only strings, numbers, booleans and null can be listed")
            if value is None:
                texts["null"] = None
                continue
            written = dump_yaml(value)
            texts[written] = None
            if isinstance(value, str):
                texts["'" + value.replace("'", "''") + "'"] = None
                texts[json.dumps(value, ensure_ascii=False)] = None
                if re.fullmatch(r"[A-Za-z][A-Za-z0-9_' -]*(?<! )", value) and value not in _NULL_WORDS:
                    texts[value] = None
        return self._rule(" | ".join(map(_literal, texts)))

    def _string(self, schema: dict[str, Any], path: str) -> str:
        """Plain, or in quotes; its length in characters."""
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if most is not None and (most < 1 or most < least):
            raise GrammarError(f"{path}: a text without characters cannot be written")
        count = f"{{{least},{'' if most is None else most}}}"
        pattern = schema.get("pattern")
        size = "" if (least, most) == (0, None) else f" & /{_CHARACTER}{count}/"
        plain = f"/{_PLAIN}/" + (f" & {_NULLS}" if least < 5 else "")
        if pattern is None:
            escape = r"\\[\x22\\\/nt]"
            options = [
                self._terminal(plain + size),
                self._terminal(f"/'({_QUOTED}|''){count}'/"),
                self._terminal(f"/\\x22({_DOUBLE}|{escape}){count}\\x22/"),
            ]
        else:  # in quotes: those texts of the pattern that need no escape
            whole = _whole(str(pattern))
            options = [self._terminal(f"{plain} & /{whole}/{size}")]
            for quote, inner in (("'", _QUOTED), ('"', _DOUBLE)):
                body = self._terminal(f"/{inner}*/ & /{whole}/{size}")
                options.append(f"{_literal(quote)} {body} {_literal(quote)}")
        return self._rule(" | ".join(options))


def _whole(pattern: str) -> str:
    """A pattern of JSON Schema, which may match anywhere in a text, as one that matches the whole text."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[1 if begins else 0 : -1 if ends else None].replace("/", "\\/")
    if re.search(r"(?<!\\)[$^](?![^\[]*\])", inner):
        raise GrammarError(f"the pattern {pattern[:60]!r} has anchors in its middle")
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
