"""The layers of the house: imports go one way, between modules and between folders. Imports inside functions and under
TYPE_CHECKING count: they too say that one module cannot be understood, or changed, without the other."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import rescoldo

ROOT = Path(rescoldo.__file__).parent
GROUND = {
    "rescoldo.invocation",
    "rescoldo.errors",
    "rescoldo.files",
    "rescoldo.units",
}  # all that system/ may know of the rest

Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Dotted name → file, of every module; a package's name stands for its __init__."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, name: str, known: Mapping[str, Path], package: bool = False) -> set[str]:
    """The modules of `known` that the module `name` imports anywhere in its source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {longest(alias.name, known) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + package]
                start = ".".join([*above, *([start] if start else [])])
            found |= {longest(f"{start}.{alias.name}", known) for alias in node.names}
    return found - {"", name}


def longest(name: str, known: Mapping[str, Path]) -> str:
    """The module that `name` is, or is in; "" if it is none of ours."""
    while name not in known:
        if "." not in name:
            return ""
        name = name.rpartition(".")[0]
    return name


def graph() -> dict[str, set[str]]:
    """Module → the modules that it imports."""
    known = modules()
    return {
        name: imported(path.read_text(), name, known, package=path.name == "__init__.py")
        for name, path in known.items()
    }


def circles(edges: Graph) -> list[list[str]]:
    """The strongly connected components with more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in edges:
        if node not in index:
            visit(node)
    return sorted(found)


def folders(edges: Graph) -> dict[str, set[str]]:
    """The same between folders: a file stands for the folder it is in, a file at the top for itself."""
    known = modules()

    def folder(name: str) -> str:
        place = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
        return name if place == "rescoldo" else place

    found: dict[str, set[str]] = {}
    for name, others in edges.items():
        found.setdefault(folder(name), set()).update(folder(other) for other in others)
    return {name: others - {name} for name, others in found.items()}


def explained(edges: Graph, component: list[str]) -> Iterator[str]:
    for name in component:
        for other in sorted(edges[name] & set(component)):
            yield f"{name} → {other}"


def test_no_circles_between_modules() -> None:
    edges = graph()
    assert [list(explained(edges, component)) for component in circles(edges)] == []


def test_no_circles_between_folders() -> None:
    edges = folders(graph())
    assert [list(explained(edges, component)) for component in circles(edges)] == []


def test_the_ground_floor_knows_nothing_of_the_rest() -> None:
    for name, others in graph().items():
        if name.startswith("rescoldo.system") or name in GROUND:
            outside = {other for other in others if not other.startswith("rescoldo.system")}
            assert outside <= GROUND, name


def test_the_test_sees_every_kind_of_import() -> None:
    known = dict.fromkeys(("p", "p.a", "p.a.x", "p.a.y", "p.b"), ROOT)
    source = """
import p.b
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from p.a.y import Thing
def late():
    from . import y
    from .. import b
    import os
"""
    assert imported(source, "p.a.x", known) == {"p.a.y", "p.b"}
    assert imported("from .x import name", "p.a", known, package=True) == {"p.a.x"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}) == [["a", "b", "c"]]
