"""YAML from a source that is not trusted, within bounds, every scalar as the text that was written.

A model's answer is read event by event into lists, dicts, strings and None; nothing is ever constructed by tag, so
`id: 001` is the text "001", `priority: Yes` the text "Yes", a date its own digits, an integer of a million digits a
string. Only an empty plain scalar, `~` and `null` become None. There is no recursion and an alias costs what it
expands to, so no text can exhaust the stack, the memory or the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

MAX_CHARACTERS = 256 * 1024
MAX_NODES = 20_000  # an alias counts as all the nodes it stands for
MAX_DEPTH = 32
MAX_ALIASES = 100

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")
)


class YamlRefusedError(ValueError):
    """The text is no YAML, or more YAML than is read here; the message says which in one line."""


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    nodes_before: int
    key: str | None = None  # mapping only: the key that waits for its value


def strip_fence(text: str) -> str:
    """`text` without the one code fence around it, if it begins and ends with one."""
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
    """The one YAML document in `text` as nested list, dict (string keys; the last of two equal keys wins), str, None.

    Raises:
        YamlRefusedError: not YAML, several documents, a tag beyond plain data, or over one of the bounds above.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlRefusedError(f"longer than {MAX_CHARACTERS} characters")
    try:
        return _build(yaml.parse(text.lstrip("\ufeff"), Loader=_LOADER))
    except YamlRefusedError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1})" if mark else ""
        raise YamlRefusedError(f"{error.problem or error.context or 'not YAML'}{place}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise YamlRefusedError((str(error).splitlines() or ["not YAML"])[0]) from None


def _build(events: Iterable[yaml.Event]) -> Any:
    root: Any = None
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
                raise YamlRefusedError("a key that is a list or a mapping")
            top.key = value or ""
        else:
            top.value[top.key] = value
            top.key = None

    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise YamlRefusedError("more than one YAML document")
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor not in anchors:
                raise YamlRefusedError(f"alias *{event.anchor} stands for nothing, or for itself")
            value, size = anchors[event.anchor]
            nodes += size
            if aliases > MAX_ALIASES:
                raise YamlRefusedError(f"more than {MAX_ALIASES} aliases")
            add(value)
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            _check_tag(event.tag)
            plain = event.implicit[0] and event.style in (None, "")
            value = None if plain and event.value in _PLAIN_NULLS else event.value
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
                raise YamlRefusedError(f"nested deeper than {MAX_DEPTH}")
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            done = stack.pop()
            if done.anchor:
                anchors[done.anchor] = (done.value, nodes - done.nodes_before)
            add(done.value)
        if nodes > MAX_NODES:
            raise YamlRefusedError(f"more than {MAX_NODES} values")
    return root


def _check_tag(tag: str | None) -> None:
    if tag is not None and tag != "!" and tag not in _TAGS:
        raise YamlRefusedError(f"tag {tag}")
