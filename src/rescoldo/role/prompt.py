"""Prompt templates: jinja2 in its sandbox, restricted so that rendering has bounded cost.

A template may print fields, loop over lists and use conditions; it may not call, assign, import, define, calculate or
concatenate texts. So its output is at most its own text and the record's for each iteration of its loops, and the
iterations are counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
import yaml
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 1 << 20  # of a rendered prompt
MAX_TURNS = 10_000  # iterations of all loops of a template together
MAX_TEMPLATE = 64 * 1024
_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.For,
    nodes.If,
    nodes.CondExpr,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Filter,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
)
_TESTS = ("defined", "undefined", "none", "string", "number", "mapping", "sequence", "true", "false", "in", "eq", "ne")


class PromptError(ValueError):
    """An invalid template, or a record for which it cannot be rendered; the message says why in one line.

    Args:
        line: of the template, from 1; 0 if the error has no line.
    """

    def __init__(self, what: str, line: int = 0) -> None:
        self.line = line
        super().__init__(what)


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, except for texts with a Unicode line break: PyYAML would write them in single quotes, in which
    U+0085 is parsed as a space."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def dump_yaml(value: Any) -> str:
    """`value` as YAML: one line a value, however long, keys in their order, no line end."""
    text = yaml.dump(
        value, Dumper=_Dumper, width=float("inf"), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return text.removesuffix("...\n").rstrip("\n")


def dump_json(value: Any) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _join(values: Iterable[Any], separator: str = "") -> str:
    parts = [str(value) for value in values]
    if sum(map(len, parts)) + len(parts) * len(separator) > MAX_CHARACTERS:
        raise PromptError(f"longer than {MAX_CHARACTERS} characters")
    return separator.join(parts)


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, values: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, counted against the template's limit."""
    turns: list[int] = context.parent["_turns"]
    for value in values:
        turns[0] += 1
        if turns[0] > MAX_TURNS:
            raise PromptError(f"its loops have more than {MAX_TURNS} iterations")
        yield value


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    known = environment.filters
    names = ("trim", "upper", "lower", "capitalize", "title", "default", "length", "first", "last", "sort", "unique")
    environment.filters = {name: known[name] for name in names}
    environment.filters |= {"join": _join, "json": dump_json, "yaml": dump_yaml, "_counted": _counted}
    environment.tests = {name: environment.tests[name] for name in _TESTS}
    environment.globals = {}
    return environment


_ENVIRONMENT = _environment()


def compile_template(text: str) -> jinja2.Template:
    """Compile a template.

    Raises:
        PromptError: it is not valid jinja2, or uses features that are not allowed here.
    """
    if len(text) > MAX_TEMPLATE:
        raise PromptError(f"longer than {MAX_TEMPLATE} characters")
    try:
        tree = _ENVIRONMENT.parse(text)
        for node in tree.find_all(nodes.Node):
            _check_node(node)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None).set_lineno(loop.lineno)
        code = _ENVIRONMENT.compile(tree)
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(str(error.message), error.lineno) from None
    except jinja2.TemplateError as error:
        raise PromptError(str(error)) from None
    except RecursionError:
        raise PromptError("nested too deeply") from None
    return jinja2.Template.from_code(_ENVIRONMENT, code, {}, None)


def fields_used(text: str) -> set[str]:
    """The record's fields that a (valid) template uses."""
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(text))


def _check_node(node: nodes.Node) -> None:
    if not isinstance(node, _NODES):
        raise PromptError(
            f"{type(node).__name__.lower()} is not allowed in prompts (allowed: fields, for, if, comparisons and the "
            "filters of docs/roles.md)",
            node.lineno,
        )
    if isinstance(node, nodes.Filter) and (node.name not in _ENVIRONMENT.filters or node.name.startswith("_")):
        raise PromptError(f"there is no filter {node.name!r}", node.lineno)
    if isinstance(node, nodes.Name) and node.name.startswith("_"):
        raise PromptError(f"there is no field {node.name!r}", node.lineno)
    if isinstance(node, nodes.For) and node.recursive:
        raise PromptError("a recursive loop is not allowed in prompts", node.lineno)


def render(template: jinja2.Template, record: Mapping[str, Any]) -> str:
    """Render the template with the record's fields as its variables.

    Raises:
        PromptError: a field that it uses is missing, or the text exceeds the limits.
    """
    parts: list[str] = []
    size = 0
    try:
        for part in template.generate({str(name): value for name, value in record.items()} | {"_turns": [0]}):
            size += len(part)
            if size > MAX_CHARACTERS:
                raise PromptError(f"longer than {MAX_CHARACTERS} characters")
            parts.append(part)
    except PromptError:
        raise
    except jinja2.UndefinedError as error:
        raise PromptError(f"{error.message}: used by the prompt, missing from the record") from None
    except Exception as error:  # a filter applied to an unsuitable value: any type
        raise PromptError(f"{type(error).__name__}: {error}"[:300]) from None
    return "".join(parts)
