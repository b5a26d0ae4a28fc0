"""A role's output schema: JSON Schema (2020-12), validated by jsonschema, and what is derived from it.

There are two additions to the standard. `x-unique: id` in an array schema requires that its items have different values
of that property. And the schema tells which texts of an answer are prose, written for a reader, and which are formal
(an ID, a priority): a string with enum, const, pattern or format is formal.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jsonschema
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY
from referencing.jsonschema import DRAFT202012

from rescoldo.phrase import Phrase, either
from rescoldo.role.fault import Finding, closest, kind
from rescoldo.role.yaml_text import YamlRefusedError, parse_yaml

MAX_ERRORS = 50  # for one value
MAX_DEPTH = 32
_WORDS = {
    "object": kind({}),
    "array": kind([]),
    "string": kind(""),
    "boolean": kind(True),
    "number": kind(0.0),
    "integer": Phrase("a whole number"),
    "null": kind(None),
}


class SchemaError(ValueError):
    """A schema that cannot be used; the message says why in one line.

    Args:
        path: the fault's place inside the schema, keys and indices.
    """

    def __init__(self, what: str, path: Iterable[str | int] = ()) -> None:
        self.path = tuple(path)
        super().__init__(f"{_path(self.path)}: {what}" if self.path else what)


def _unique(validator: Any, name: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    if not isinstance(instance, list):
        return
    seen: dict[str, int] = {}
    for index, item in enumerate(instance):
        value = item.get(name) if isinstance(item, dict) else None
        if isinstance(value, str) and seen.setdefault(value, index) != index:
            message = Phrase("{id} is already used in item {index}", id=value[:40], index=seen[value])
            yield jsonschema.ValidationError(message, path=(index, name))


_Validator = extend(jsonschema.Draft202012Validator, {"x-unique": _unique})


@dataclass(frozen=True)
class Form:
    """The keys of an answer's text by what they hold, for code that does not parse the text.

    Attributes:
        formal: keys whose values are formal (id, priority).
        prose: keys whose values are prose.
        listed: those of `prose` that occur in the items of a list.
    """

    formal: frozenset[str] = frozenset()
    prose: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()

    @cached_property
    def scaffold(self) -> re.Pattern[str]:
        """Matches what all answers share: formal keys with their values, and the names of the other keys."""
        lines = [rf"{_keys(self.formal)}:.*"] if self.formal else []
        lines += [rf"{_keys(self.keys - self.formal)}:"] if self.keys - self.formal else []
        return re.compile(rf"^[ \t]*(?:-[ \t]+)?(?:{'|'.join(lines)})" if lines else r"(?!)", re.MULTILINE)

    @cached_property
    def items(self) -> re.Pattern[str]:
        """Matches a line of prose that may belong to a list's item; its first group is the text."""
        if not self.listed:
            return re.compile(r"(?!)()")
        return re.compile(rf"^[ \t]*(?:-[ \t]+)?{_keys(self.listed)}:[ \t]*(\S.*)$", re.MULTILINE)


def _keys(names: frozenset[str]) -> str:
    return f'"?(?:{"|".join(map(re.escape, sorted(names, key=lambda name: (-len(name), name))))})"?'


class Schema:
    """A compiled JSON Schema.

    Raises:
        SchemaError: it is invalid, or refers to something outside itself.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        try:
            jsonschema.Draft202012Validator.check_schema(document)
            for path, part in _parts(document):
                self._check(part, path)
        except jsonschema.SchemaError as error:
            raise SchemaError(_schema_fault(error), error.absolute_path) from None
        except RecursionError:
            raise SchemaError("nested too deeply") from None
        self._validator = _Validator(document, registry=REGISTRY)  # never fetches anything

    def _check(self, part: dict[str, Any], path: tuple[str | int, ...]) -> None:
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in part and not str(part[keyword]).startswith("#"):
                raise SchemaError(f"{keyword} {str(part[keyword])[:60]!r} points outside of the schema", path)
        try:
            found = self._resolve(part)
        except SchemaError as error:
            raise SchemaError(str(error), path) from None
        if found is None:
            raise SchemaError(f"$ref {str(part['$ref'])[:60]!r} points to nothing", path)
        if "x-unique" in part and not isinstance(part["x-unique"], str):
            raise SchemaError("x-unique: expected the name of a property", path)

    def _resolve(self, schema: Any) -> dict[str, Any] | None:
        """A subschema with its local $ref resolved; None if it refers to nothing.

        Raises:
            SchemaError: the reference is circular.
        """
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema if isinstance(schema, dict) else {} if schema is True else None
            target: Any = self.document
            for name in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
                if name:
                    target = (
                        target.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
                    )
            schema = target
        raise SchemaError(f"$ref {str(schema['$ref'])[:60]!r} is circular")

    def findings(self, value: Any, path: str = "") -> list[Finding]:
        """The faults of a value, in the order of its fields; [] if it is valid."""
        found = []
        with contextlib.suppress(RecursionError):
            for error in self._validator.iter_errors(value):
                found.append(_finding(error, path))
                if len(found) == MAX_ERRORS:
                    break
            return found
        return [Finding(path, "depth", Phrase("is nested too deeply"))]

    def properties(self, schema: Any = None) -> dict[str, dict[str, Any]]:
        """The properties of an object schema (by default the whole schema), with references resolved."""
        found = (self._resolve(self.document if schema is None else schema) or {}).get("properties")
        return {name: self._resolve(part) or {} for name, part in found.items()} if isinstance(found, dict) else {}

    def required(self) -> list[str]:
        """The required top-level properties."""
        return [str(name) for name in (self._resolve(self.document) or {}).get("required", [])]

    def part(self, name: str) -> Schema:
        """The schema of one top-level property, by itself."""
        definitions: dict[str, Any] = {k: self.document[k] for k in ("$defs", "definitions") if k in self.document}
        return Schema({**definitions, **self.properties()[name]})

    def item(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema of an array's items."""
        return self._resolve(schema.get("items", {})) or {}

    def conform(self, value: Any, schema: Any = None, depth: int = 0) -> Any:
        """A copy of `value` with texts converted to the schema's types where that is unambiguous.

        Lists and objects may be YAML in a text; numbers and booleans may be texts (YAML answers are parsed as texts).
        Values that do not fit are left unchanged.
        """
        schema = self._resolve(self.document if schema is None else schema) or {}
        if depth > MAX_DEPTH:
            return value
        wanted = schema.get("type")
        if isinstance(value, str) and isinstance(wanted, str):
            value = _read_text(value, wanted)
        if isinstance(value, list):
            items = schema.get("items", {})
            return [self.conform(item, items, depth + 1) for item in value]
        if isinstance(value, dict):
            parts = schema.get("properties", {})
            return {name: self.conform(item, parts.get(name, {}), depth + 1) for name, item in value.items()}
        return value

    def project(self, value: Any, schema: Any = None, depth: int = 0) -> Any:
        """A copy of `value` with the properties that the schema names, in the schema's order.

        Other properties are removed, or come last if `additionalProperties` allows them.
        """
        schema = self._resolve(self.document if schema is None else schema) or {}
        if depth > MAX_DEPTH:
            return value
        if isinstance(value, list):
            return [self.project(item, schema.get("items", {}), depth + 1) for item in value]
        parts = schema.get("properties")
        if not isinstance(value, dict) or not isinstance(parts, dict):
            return value
        named = {name: self.project(value[name], part, depth + 1) for name, part in parts.items() if name in value}
        if schema.get("additionalProperties", False) is False:
            return named
        return named | {name: item for name, item in value.items() if name not in parts}

    def prose(self, value: Any, schema: Any = None, listed: bool = False, depth: int = 0) -> Iterator[tuple[bool, str]]:
        """(is in a list, text) for each prose text of `value`, in the schema's order."""
        schema = self._resolve(self.document if schema is None else schema) or {}
        if depth > MAX_DEPTH:
            return
        if isinstance(value, str):
            if not _formal(schema):
                yield listed, value
        elif isinstance(value, list):
            for item in value:
                yield from self.prose(item, schema.get("items", {}), True, depth + 1)
        elif isinstance(value, dict):
            for name, part in schema.get("properties", {}).items():
                yield from self.prose(value.get(name), part, listed, depth + 1)

    @cached_property
    def form(self) -> Form:
        """The keys of an answer, by what they hold."""
        formal: set[str] = set()
        prose: set[str] = set()
        listed: set[str] = set()
        keys: set[str] = set()

        def walk(schema: Any, in_list: bool, depth: int) -> None:
            schema = self._resolve(schema) or {}
            if depth > MAX_DEPTH:
                return
            for name, raw in schema.get("properties", {}).items():
                part = self._resolve(raw) or {}
                keys.add(name)
                if _formal(part):
                    formal.add(name)
                elif part.get("type") == "string":
                    prose.add(name)
                    if in_list:
                        listed.add(name)
                walk(part, in_list, depth + 1)
            if "items" in schema:
                walk(schema["items"], True, depth + 1)

        walk(self.document, False, 0)
        return Form(frozenset(formal), frozenset(prose), frozenset(listed), frozenset(keys))


def _formal(schema: dict[str, Any]) -> bool:
    kinds = ("integer", "number", "boolean", "null")
    return any(name in schema for name in ("enum", "const", "pattern", "format")) or schema.get("type") in kinds


def _read_text(text: str, wanted: str) -> Any:
    if wanted in ("array", "object"):
        try:
            value = parse_yaml(text)
        except YamlRefusedError:
            return text
        return value if isinstance(value, list if wanted == "array" else dict) else text
    stripped = text.strip()
    if wanted == "integer" and re.fullmatch(r"[-+]?[0-9]{1,18}", stripped):
        return int(stripped)
    if wanted == "number" and re.fullmatch(r"[-+]?[0-9]{1,18}(\.[0-9]{1,18})?", stripped):
        return float(stripped) if "." in stripped else int(stripped)
    if wanted == "boolean" and stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    return text


def _parts(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """(path, object) of all objects in a value, including the value itself."""
    if isinstance(value, dict):
        yield path, value
        for name, part in value.items():
            yield from _parts(part, (*path, str(name)))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _parts(part, (*path, index))


def unknown_keywords(schema: Any) -> list[tuple[str, str]]:
    """(name, the keyword probably meant, or "") of names that are not JSON Schema keywords; x-… names are allowed."""
    if not isinstance(schema, dict):
        return []
    found = [(str(name), closest(str(name), _KEYWORDS)) for name in schema if not _known(str(name))]
    for part in DRAFT202012.subresources_of(schema):
        found += unknown_keywords(part)
    return found


def _known(name: str) -> bool:
    return name in _KEYWORDS or name.startswith("x-")


def _keywords() -> frozenset[str]:
    """All keywords of the standard's metaschema."""
    whole = REGISTRY.contents("https://json-schema.org/draft/2020-12/schema")
    parts = [REGISTRY.contents(f"https://json-schema.org/draft/2020-12/{part['$ref']}") for part in whole["allOf"]]
    return frozenset(name for part in (whole, *parts) for name in part["properties"])


_KEYWORDS = _keywords()


def _schema_fault(error: jsonschema.SchemaError) -> str:
    """An error of jsonschema about a schema, as our message."""
    keyword = error.absolute_path[-1] if error.absolute_path else ""
    if keyword == "type":
        return f"is {str(error.instance)[:40]!r}: expected one of {', '.join(_WORDS)}"
    if error.validator == "type":
        wanted = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return f"is {kind(error.instance)}: expected {' or '.join(_WORDS[name] for name in wanted)}"
    if error.validator == "format":
        return f"{str(error.instance)[:60]!r} is not a regular expression"
    return str(error.message)[:200]


def _path(path: Any, root: str = "") -> str:
    text = root
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _finding(error: jsonschema.ValidationError, root: str) -> Finding:
    """An error of jsonschema about a value, in the style of our other messages."""
    value, limit, keyword = error.instance, error.validator_value, str(error.validator)
    path = _path(error.absolute_path, root)
    shown = repr(value)[:40] if isinstance(value, str | int | float) else kind(value)
    if keyword == "required":
        missing = next((name for name in limit if name not in value), "")
        quoted = re.match(r"'(.*)' is a required property", error.message)
        return Finding(_path([quoted[1] if quoted else missing], path), "missing", Phrase("is missing"))
    if keyword == "type":
        wanted = either(_WORDS.get(name, name) for name in ([limit] if isinstance(limit, str) else limit))
        return Finding(path, "type", Phrase("is {kind}: expected {wanted}", kind=kind(value), wanted=wanted))
    if keyword == "enum":
        choices = ", ".join(map(str, limit))[:200]
        return Finding(path, "enum", Phrase("is {value}: expected one of {choices}", value=shown, choices=choices))
    if keyword == "pattern":
        what = Phrase("is {value}, which does not match {pattern}", value=shown, pattern=limit[:80])
        return Finding(path, "pattern", what)
    if keyword in ("minLength", "minItems", "maxLength", "maxItems"):
        return Finding(path, keyword if value else "empty", _length(keyword, len(value), limit))
    what = error.message if isinstance(error.message, Phrase) else Phrase("{text}", text=error.message[:200])
    return Finding(path, keyword, what)


def _length(keyword: str, length: int, limit: int) -> Phrase:
    if keyword == "minLength":
        return Phrase("{length} characters, at least {limit} wanted", length=length, limit=limit)
    if keyword == "maxLength":
        return Phrase("{length} characters, at most {limit} wanted", length=length, limit=limit)
    if keyword == "minItems":
        return Phrase("{length} items, at least {limit} wanted", length=length, limit=limit)
    return Phrase("{length} items, at most {limit} wanted", length=length, limit=limit)
