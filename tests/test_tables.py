"""What differs between the rows of a table stands in the table: no code elsewhere asks for one of its rows by name.

The names of families, precisions, kinds of adapters, export formats, instruction sets and schemes are read from the
tables themselves; a comparison with one of them (`==`, `!=`, `in`, `match`) anywhere in the program is a fault.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rescoldo
from rescoldo.base.open import SCHEMES
from rescoldo.engine.kernels.build import INSTRUCTION_SETS
from rescoldo.engine.kinds import KINDS
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.export.formats import FORMATS
from rescoldo.families import FAMILIES, WRAPPERS
from rescoldo.names import SERVERS
from rescoldo.training.objectives import OBJECTIVES

ROOT = Path(rescoldo.__file__).parent
# table → (its names, the files that may ask for them)
TABLES: dict[str, tuple[set[str], set[str]]] = {
    "precisions": ({*PRECISIONS, *(alias for row in PRECISIONS.values() for alias in row.aliases)}, set()),
    "families": (
        {*FAMILIES, *WRAPPERS, *(row.gguf for row in FAMILIES.values())},
        {
            "base/tokenizer.py",  # "llama" is what GGUF calls a SentencePiece vocabulary, whatever the family
            "base/chat_templates.py",  # what models are called, where nothing else says how they are asked
        },
    ),
    "export formats": (set(FORMATS), set()),
    "kinds of adapter": (set(KINDS), set()),
    "objectives": (set(OBJECTIVES), set()),
    "instruction sets": ({row.name for row in INSTRUCTION_SETS}, {"system/cpu.py"}),  # which asks for the CPU's flags
    "schemes": ({name + colon for name in SCHEMES for colon in ("", ":")}, set()),
    "servers": (set(SERVERS), set()),
}
# by these names a row is known: comparing one with any text is a chain, whatever the text
KEYS = {"adapter", "architecture", "objective", "precision", "quantization", "model_type", "hf_class"}
AUTOMATIC = {"auto"}  # no row, but the wish to have one chosen


def compared(source: str) -> Iterator[tuple[int, str, set[str]]]:
    """(line, what is compared, the texts that it is compared with) of each comparison with constant texts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = {text for side in sides for text in constants(side)}
            if texts:
                yield node.lineno, " ".join(named(side) for side in sides), texts
        elif isinstance(node, ast.Match):
            texts = {text for case in node.cases for one in ast.walk(case.pattern) for text in constants(one)}
            yield node.lineno, named(node.subject), texts
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            yield node.lineno, named(node.func.value), {text for one in node.args for text in constants(one)}


def constants(node: ast.AST) -> set[str]:
    """The texts of a constant, or of a tuple, list or set of such."""
    if isinstance(node, ast.MatchValue):
        return constants(node.value)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return {text for one in node.elts for text in constants(one)}
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def named(node: ast.AST) -> str:
    """The last name of an expression: `config.architecture` → "architecture"."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def chains(source: str, file: str) -> Iterator[str]:
    for line, left, texts in compared(source):
        for table, (names, allowed) in TABLES.items():
            if (found := texts & names) and file not in allowed:
                yield f"{file}:{line} asks for {', '.join(sorted(found))} of the table of {table}"
        if KEYS & set(left.split()) and texts - AUTOMATIC:
            yield f"{file}:{line} compares {left} with {', '.join(sorted(texts))}"


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
    ],
)
def test_it_sees_every_form(source: str) -> None:
    assert list(chains(source, "x.py"))


def test_it_leaves_the_rest_alone() -> None:
    assert not list(chains('if precision == AUTO or precision == "auto" or name == "anything": pass', "x.py"))


def test_a_row_of_nf4_has_the_kernels_block() -> None:
    from rescoldo.engine.kernels.ops import NF4_BLOCK

    assert PRECISIONS["nf4"].block == NF4_BLOCK
