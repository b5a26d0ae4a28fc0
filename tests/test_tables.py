"""What differs between the rows of a table stands in the table: no code elsewhere asks for one of its rows by name.

The names of families, precisions, kinds of adapters, export formats, instruction sets and others are read from the
tables themselves. Anywhere else in the program it is a fault to compare with one of them (`==`, `!=`, `in`, `match`,
`startswith`, `endswith`), to choose by a dictionary of several of them, or to list several of them in a constant.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import typer

import rescoldo
from rescoldo.base.open import SCHEMES
from rescoldo.cli.main import app
from rescoldo.data.preferences import FORMS
from rescoldo.engine.kernels.build import INSTRUCTION_SETS
from rescoldo.engine.kinds import KINDS
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.engine.rope_scaling import SCALINGS
from rescoldo.export.formats import FORMATS
from rescoldo.families import FAMILIES, WRAPPERS
from rescoldo.names import SERVERS, ObjectiveName
from rescoldo.optimize.methods import METHODS
from rescoldo.role.grammar import _GRAMMARS
from rescoldo.role.serialization import SERIALIZATIONS
from rescoldo.role.spec import RoleSpec
from rescoldo.run.kinds import KINDS as STATES
from rescoldo.training.config import Preset
from rescoldo.training.objectives import OBJECTIVES
from rescoldo.training.preset import PRESETS
from rescoldo.training.tracking import CLIENTS

ROOT = Path(rescoldo.__file__).parent


@dataclass(frozen=True)
class Table:
    """A table's names, where it is, and, each for a reason, the files that may ask for its names, and those that may
    list them."""

    names: Iterable[str]
    home: str
    allowed: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


TABLES = {
    "precisions": Table(
        {*PRECISIONS, *(alias for row in PRECISIONS.values() for alias in row.aliases)},
        "engine/precisions.py",
        lists=("engine/auto.py",),  # the products that it measures, which rows name
    ),
    "families": Table(
        {*FAMILIES, *WRAPPERS, *(row.gguf for row in FAMILIES.values())},
        "families/__init__.py",
        (
            "base/tokenizer.py",  # "llama" is what GGUF calls a SentencePiece vocabulary, whatever the family
            "base/chat_templates.py",  # what models are called, where nothing else says how they are asked
        ),
    ),
    "export formats": Table(FORMATS, "export/formats.py"),
    "RoPE scalings": Table(  # without the names that mean other things elsewhere
        set(SCALINGS) - {"default", "linear", "factors"},
        "engine/rope_scaling.py",
        ("base/tokenizer_build.py",),  # a pre-tokenizer's name
    ),
    "kinds of adapter": Table(KINDS, "engine/kinds.py", lists=("names.py",)),  # what other programs call a setting
    "objectives": Table(OBJECTIVES, "training/objectives.py"),
    "presets": Table(PRESETS, "training/preset.py"),
    "trackers": Table(
        CLIENTS,
        "training/tracking.py",
        lists=("training/config.py", "extras.py"),  # for the help; their packages
    ),
    "forms of preferences": Table(FORMS, "data/preferences.py"),
    "optimizers": Table(METHODS, "optimize/methods.py"),
    "states of a run": Table(
        STATES,
        "run/kinds.py",
        (
            "run/status.py",  # phases that a process has written down, from which the state follows
            "run/state.py",  # the same phases
            "run/sweep.py",  # the states of a sweep's trials
            *("review/server.py", "review/wording.py", "review/draft_words.py"),  # a review is finished, or not
        ),
    ),
    "instruction sets": Table(
        {row.name for row in INSTRUCTION_SETS},
        "engine/kernels/build.py",
        ("system/cpu.py",),  # which asks for the CPU's flags
    ),
    "schemes": Table({name + colon for name in SCHEMES for colon in ("", ":")}, "base/open.py"),
    "servers": Table(SERVERS, "names.py", lists=("models/server.py",)),  # how each is opened
}
# by these names a row is known: comparing one with any text is a chain, whatever the text
KEYS = {
    *("adapter", "architecture", "objective", "precision", "quantization", "model_type", "hf_class", "rope_type"),
    *("preset", "serialization"),
}
AUTOMATIC = {"auto"}  # no row, but the wish to have one chosen
METHODS_OF_TEXT = {"startswith", "endswith"}


def compared(tree: ast.AST) -> Iterator[tuple[int, str, set[str]]]:
    """(line, what is compared, the texts that it is compared with) of each comparison with constant texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = {text for side in sides for text in constants(side)}
            if texts:
                yield node.lineno, " ".join(named(side) for side in sides), texts
        elif isinstance(node, ast.Match):
            texts = {text for case in node.cases for one in ast.walk(case.pattern) for text in constants(one)}
            yield node.lineno, named(node.subject), texts
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS_OF_TEXT:
            yield node.lineno, named(node.func.value), {text for one in node.args for text in constants(one)}


def listed(tree: ast.Module) -> Iterator[tuple[int, set[str]]]:
    """(line, texts) of what a choice is made by without a comparison: a dictionary's keys, wherever it is written, and
    a constant of the module that is a tuple, list or set of texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield node.lineno, {text for key in node.keys if key is not None for text in constants(key)}
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Call) and value.args:  # frozenset(…), MappingProxyType(…)
            value = value.args[0]
        if isinstance(value, ast.Tuple | ast.List | ast.Set):
            yield value.lineno, constants(value)


def constants(node: ast.AST) -> set[str]:
    """The texts of a constant, or of a tuple, list or set of such."""
    if isinstance(node, ast.MatchValue):
        return constants(node.value)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return {text for one in node.elts for text in constants(one)}
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def named(node: ast.AST) -> str:
    """The last name of an expression: `config.architecture`, `config["architecture"]` and
    `config.get("architecture")` → "architecture"."""
    if isinstance(node, ast.Subscript):
        return " ".join(constants(node.slice))
    if isinstance(node, ast.Call):
        asks = isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args
        return " ".join(constants(node.args[0])) if asks else ""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def chains(source: str, file: str) -> Iterator[str]:
    tree = ast.parse(source)
    others = {name: table for name, table in TABLES.items() if file != table.home and file not in table.allowed}
    for line, left, texts in compared(tree):
        for name, table in others.items():
            if found := texts & set(table.names):
                yield f"{file}:{line} asks for {', '.join(sorted(found))} of the table of {name}"
        if KEYS & set(left.split()) and texts - AUTOMATIC:
            yield f"{file}:{line} compares {left} with {', '.join(sorted(texts))}"
    for line, texts in listed(tree):
        for name, table in others.items():
            if len(found := texts & set(table.names)) > 1 and file not in table.lists:
                yield f"{file}:{line} chooses among {', '.join(sorted(found))} of the table of {name}"


def test_no_code_asks_for_a_row_by_its_name() -> None:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        found += chains(path.read_text(), str(path.relative_to(ROOT)))
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'if config.architecture == "anything": pass',
        'x = 1 if precision != "fp32" else 2',
        'if name in ("int8", "nf4"): pass',
        'if "olmo2" == found: pass',
        'match kind:\n    case "merged-gguf" | "ollama":\n        pass',
        'if spec.startswith(("openai:", "ollama:")): pass',
        'if path.endswith("merged-gguf"): pass',
        'if document["architecture"] == "anything": pass',
        'if document.get("objective") in ("one", "two"): pass',
        'make = {"dpo": 1, "kto": 2}[name]',
        'def f(name):\n    return {"lora": 1, "dora": 2}.get(name)',
        'WRITES = ("mipro", "gepa")',
        'ALIVE: frozenset[str] = frozenset({"running", "paused"})',
        'if role.spec.serialization == "text": pass',
    ],
)
def test_it_sees_every_form(source: str) -> None:
    assert list(chains(source, "x.py"))


def test_it_leaves_the_rest_alone() -> None:
    assert not list(chains('if precision == AUTO or precision == "auto" or name == "anything": pass', "x.py"))
    assert not list(chains('KEYS = {"llama": 1, "anything": 2}; ONE = ("llama", "anything")', "x.py"))


def test_what_the_types_admit_is_what_the_tables_have() -> None:
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES)
    assert set(get_args(Preset)) == set(PRESETS)
    assert set(get_args(RoleSpec.model_fields["serialization"].annotation)) == set(SERIALIZATIONS)
    assert set(_GRAMMARS) == {name for name, row in SERIALIZATIONS.items() if row.load is not None}


def test_an_adapter_on_the_disk_is_of_one_kind() -> None:
    """Two kinds with the same switches could not be told apart when the adapter is read. One of which some tensors keep
    their initial values is on the disk of the kind that trains them all, which there is."""
    written = [row.peft for row in KINDS.values() if not row.frozen]
    assert len(set(written)) == len(written)
    assert {row.peft for row in KINDS.values() if row.frozen} <= set(written)


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("train", "objective", OBJECTIVES),
        ("train", "adapter", KINDS),
        ("export", "to", FORMATS),
        ("optimize", "method", METHODS),
    ],
)
def test_help_names_every_row(command: str, option: str, names: Iterable[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    found = next(parameter for parameter in group.commands[command].params if parameter.name == option)
    assert isinstance(found, typer.core.TyperOption)
    words = set(re.findall(r"[\w-]+", found.help or ""))
    assert set(names) <= words


def test_a_row_of_nf4_has_the_kernels_block() -> None:
    from rescoldo.engine.kernels.ops import NF4_BLOCK

    assert PRECISIONS["nf4"].block == NF4_BLOCK
