"""Role files: YAML or JSON as plain data, with the line numbers of values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rescoldo.errors import RescoldoError

MAX_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Plain YAML 1.1 without aliases and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {str(key.value)[:60]!r} is repeated", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        value: its content.
        root: its YAML nodes, for the line numbers; None for JSON.
    """

    path: Path
    value: dict[str, Any]
    root: yaml.Node | None

    def where(self, *steps: str | int, line: int = 0) -> str:
        """file:line of the value at `steps` (keys and indices), or of the last existing value on that path.

        Args:
            line: the line within the value, from 1, if it is a text of several lines.
        """
        node = self.root
        if node is None or not steps:
            return str(self.path)
        number = node.start_mark.line
        for step in steps:
            for key, child in _children(node):
                if key.value == step if isinstance(key, yaml.Node) else key == step:
                    number = (key if isinstance(key, yaml.Node) else child).start_mark.line
                    node = child
                    break
        if isinstance(node, yaml.ScalarNode) and node.style == "|":
            number += line  # the text begins on the line after the key
        return f"{self.path}:{number + 1}"


def _children(node: yaml.Node) -> list[tuple[yaml.Node | int, yaml.Node]]:
    """(key, value) of a mapping, (index, item) of a list."""
    if isinstance(node, yaml.MappingNode):
        return list(node.value)
    return list(enumerate(node.value)) if isinstance(node, yaml.SequenceNode) else []


def read_document(path: Path, *, fix: str) -> Document:
    """Read a mapping from a file: JSON if its name ends in .json, else YAML.

    Args:
        fix: what the user can do if there is no file.

    Raises:
        RescoldoError: the file cannot be read, or is something else.
    """
    root = None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RescoldoError(f"is larger than {MAX_BYTES >> 20} MiB", where=str(path), fix="pass a role's file")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            value = json.loads(text, object_pairs_hook=_pairs)
        else:
            loader = _Loader(text)
            root = loader.get_single_node()
            value = loader.construct_document(root) if root is not None else None
    except FileNotFoundError:
        raise RescoldoError("there is no such file", where=str(path), fix=fix) from None
    except OSError as error:
        raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except UnicodeDecodeError:
        raise RescoldoError("is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise RescoldoError(
            f"is not JSON: {error.msg}", where=f"{path}:{error.lineno}", fix="correct it there"
        ) from None
    except RecursionError:
        raise RescoldoError("is nested too deeply", where=str(path), fix="pass a role's file") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = str(getattr(error, "problem", None) or error)[:200]
        name = "JSON" if path.suffix == ".json" else "YAML"
        raise RescoldoError(f"is not valid {name}: {problem}", where=where, fix="correct it there") from None
    if not isinstance(value, dict):
        raise RescoldoError("a mapping of fields is expected", where=str(path), fix="docs/roles.md shows one")
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:  # a date or a set, which YAML has and JSON lacks
        raise RescoldoError(
            f"holds a value other than text, number or list: {error}", where=str(path), fix="put it in quotes"
        ) from None
    return Document(path, {str(name): item for name, item in value.items()}, root)


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in items:
        if key in result:
            raise ValueError(f"the key {key[:60]!r} is repeated")
        result[key] = value
    return result
