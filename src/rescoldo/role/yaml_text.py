"""YAML or JSON from an untrusted source, parsed with limits, with every scalar as the text that was written.

A model's answer is parsed event by event into lists, dicts, strings and None; nothing is ever constructed by tag, so
`id: 001` is the text "001", `priority: Yes` the text "Yes", a date a string of its digits, and so is an integer of a
million digits. Only an empty plain scalar, `~` and `null` become None. There is no recursion, and an alias costs as
much as its expansion, so no text can exhaust the stack, the memory or the time. `<<` merges as in YAML 1.1.

JSON is parsed by JSON's own rules, of which YAML is not quite a superset: in JSON the two halves of an escaped
surrogate pair are one character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from rescoldo.phrase import Phrase

MAX_CHARACTERS = 256 * 1024
MAX_NODES = 20_000  # an alias counts as all the nodes of its expansion
MAX_DEPTH = 32
MAX_ALIASES = 100

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "<<"
# a character above U+FFFF as JSON escapes it, with all backslashes before it
_PAIR = re.compile(r"(?<!\\)(\\+)u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")
)
_PROBLEMS = {  # what libyaml and json say most often, as phrases of ours
    str(phrase): phrase
    for phrase in (
        Phrase("mapping values are not allowed here"),
        Phrase("mapping values are not allowed in this context"),
        Phrase("could not find expected ':'"),
        Phrase("did not find expected key"),
        Phrase("did not find expected '-' indicator"),
        Phrase("did not find expected alphabetic or numeric character"),
        Phrase("did not find expected node content"),
        Phrase("did not find expected ',' or ']'"),
        Phrase("did not find expected ',' or '}}'"),
        Phrase("block sequence entries are not allowed in this context"),
        Phrase("found unknown escape character"),
        Phrase("found a tab character that violates indentation"),
        Phrase("found unexpected end of stream"),
        Phrase("found character that cannot start any token"),
        Phrase("Expecting value"),
        Phrase("Expecting ',' delimiter"),
        Phrase("Expecting ':' delimiter"),
        Phrase("Expecting property name enclosed in double quotes"),
        Phrase("Extra data"),
        Phrase("Unterminated string starting at"),
        Phrase("Invalid control character at"),
    )
}


class YamlRefusedError(ValueError):
    """The text is not YAML, or exceeds the limits; the message says why in one line.

    Attributes:
        what: the message, a Phrase.
        line: its line, from 1; None if it is unknown.
    """

    def __init__(self, what: Phrase, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.line = what, line


@dataclass
class _Open:
    """A list or mapping that is not closed yet."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    nodes_before: int
    key: str | None = None  # mapping only: the key whose value comes next
    merging: bool = False  # that key is a merge key
    merged: dict[str, Any] = field(default_factory=dict)  # the entries from merge keys


def strip_fence(text: str) -> str:
    """`text` without the single code fence around it, if it begins and ends with one."""
    stripped = text.strip("\ufeff \t\r\n")
    opening, _, rest = stripped.partition("\n")
    mark = opening[0] if opening[:3] in ("```", "~~~") else ""
    body, _, closing = rest.rpartition("\n")
    closing = closing.strip()
    fence = opening[: len(opening) - len(opening.lstrip(mark))] if mark else ""
    if not fence or mark in opening[len(fence) :] or closing != fence:
        return text
    return body


def parse_yaml(text: str) -> Any:
    """The one document in `text` as nested list, dict (string keys; the last of two equal keys wins), str, None.

    Documents without content do not count: text between two lines of `---` is one document.

    Raises:
        YamlRefusedError: not YAML, several documents, a tag beyond plain data, or over one of the bounds above.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlRefusedError(Phrase("longer than {characters} characters", characters=MAX_CHARACTERS))
    text = text.lstrip("\ufeff")
    if text.lstrip(" \t\r\n").startswith(("{", "[")):
        try:
            return _bounded(json.loads(text, parse_int=str, parse_float=str, parse_constant=str))
        except RecursionError:
            raise YamlRefusedError(Phrase("nested deeper than {depth}", depth=MAX_DEPTH)) from None
        except json.JSONDecodeError:
            pass  # YAML in flow style
    try:
        return _build(yaml.parse(_PAIR.sub(_joined, text), Loader=_LOADER))
    except YamlRefusedError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = problem(error.problem or error.context)
        if mark is None:
            raise YamlRefusedError(what) from None
        raise YamlRefusedError(Phrase("{what} (line {line})", what=what, line=mark.line + 1), mark.line + 1) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise YamlRefusedError(problem((str(error).splitlines() or [""])[0])) from None


def problem(what: str | None) -> Phrase:
    """What a parser says of a text; parsers of other people's have messages of their own."""
    if not what:
        return Phrase("not YAML")
    return _PROBLEMS.get(what) or Phrase("{text}", text=what)


def _joined(pair: re.Match[str]) -> str:
    """An escaped surrogate pair as YAML escapes the character, unless its backslash is itself escaped."""
    slashes, high, low = pair.groups()
    if len(slashes) % 2 == 0:
        return pair[0]
    return f"{slashes}U{0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00:08X}"


def _bounded(value: Any) -> Any:
    """JSON with the same limits as YAML, its scalars as text.

    Raises:
        YamlRefusedError: it exceeds a limit.
    """
    nodes = 0

    def convert(part: Any, depth: int) -> Any:
        nonlocal nodes
        nodes += 1 + (len(part) if isinstance(part, dict) else 0)
        if nodes > MAX_NODES:
            raise YamlRefusedError(Phrase("more than {count} values", count=MAX_NODES))
        if isinstance(part, dict | list) and depth > MAX_DEPTH:
            raise YamlRefusedError(Phrase("nested deeper than {depth}", depth=MAX_DEPTH))
        if isinstance(part, dict):
            return {_whole(key): convert(item, depth + 1) for key, item in part.items()}
        if isinstance(part, list):
            return [convert(item, depth + 1) for item in part]
        if isinstance(part, bool):
            return "true" if part else "false"
        return part if part is None else _whole(part)

    return convert(value, 1)


def _whole(text: str) -> str:
    """A text that can be encoded as UTF-8: lone surrogates are replaced."""
    return _SURROGATE.sub("\ufffd", text)


def _merge(top: _Open, value: Any) -> None:
    """Add the entries of a merge key's value: a mapping, or a list of mappings, of which earlier ones take precedence.

    Raises:
        YamlRefusedError: it is something else.
    """
    for source in reversed(value if isinstance(value, list) else [value]):
        if not isinstance(source, dict):
            raise YamlRefusedError(Phrase("a merge key (<<) takes a mapping or a list of mappings"))
        top.merged |= source


def _build(events: Iterable[yaml.Event]) -> Any:
    root: Any = None
    before: Any = None  # the document before this one
    documents = nodes = aliases = 0
    stack: list[_Open] = []
    anchors: dict[str, tuple[Any, int]] = {}  # name → value, nodes in it

    def add(value: Any) -> None:
        nonlocal root
        if not stack:
            root = value
            return
        top = stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            if not isinstance(value, str | None):
                raise YamlRefusedError(Phrase("a key that is a list or a mapping"))
            top.key = value or ""
        elif top.merging:
            _merge(top, value)
            top.key, top.merging = None, False
        else:
            top.value[top.key] = value
            top.key = None

    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            before, root = root, None
            anchors.clear()
        elif isinstance(event, yaml.DocumentEndEvent):
            documents += root is not None
            if documents > 1:
                raise YamlRefusedError(Phrase("more than one YAML document"))
            root = before if root is None else root
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor not in anchors:
                raise YamlRefusedError(
                    Phrase("alias *{name} is undefined, or refers to itself", name=str(event.anchor))
                )
            value, size = anchors[event.anchor]
            nodes += size
            if aliases > MAX_ALIASES:
                raise YamlRefusedError(Phrase("more than {count} aliases", count=MAX_ALIASES))
            add(value)
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            _check_tag(event.tag)
            plain = event.implicit[0] and event.style in (None, "")
            value = None if plain and event.value in _PLAIN_NULLS else event.value
            if plain and value == _MERGE and stack and isinstance(stack[-1].value, dict) and stack[-1].key is None:
                stack[-1].merging = True
            if event.anchor:
                anchors[event.anchor] = (value, 1)
            add(value)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            _check_tag(event.tag)
            if event.anchor:
                anchors.pop(event.anchor, None)
            stack.append(_Open([] if isinstance(event, yaml.SequenceStartEvent) else {}, event.anchor, nodes))
            nodes += 1
            if len(stack) > MAX_DEPTH:
                raise YamlRefusedError(Phrase("nested deeper than {depth}", depth=MAX_DEPTH))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            done = stack.pop()
            if isinstance(done.value, dict) and done.merged:
                done.value = done.merged | done.value
            if done.anchor:
                anchors[done.anchor] = (done.value, nodes - done.nodes_before)
            add(done.value)
        if nodes > MAX_NODES:
            raise YamlRefusedError(Phrase("more than {count} values", count=MAX_NODES))
    return root


def _check_tag(tag: str | None) -> None:
    if tag is not None and tag != "!" and tag not in _TAGS:
        raise YamlRefusedError(Phrase("tag {name}", name=tag))
