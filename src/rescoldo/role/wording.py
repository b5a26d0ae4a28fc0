"""Messages about invalid fields of a role's file, with line numbers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from rescoldo.errors import RescoldoError
from rescoldo.role.document import Document
from rescoldo.role.fault import closest, kind
from rescoldo.role.spec import MessageTemplate, RoleSpec, SamplingSpec

SHOWN = 5  # maximum problems per file
_TAGGED = ("prompt", "schema", "samples")  # pydantic appends the detected form to these names
_EMPTY = ("too_short", "string_too_short")
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "too_long": "at most {max_length}",
    "string_too_long": "at most {max_length} characters",
}


def refusal(error: ValidationError, document: Document) -> RescoldoError:
    """The error for pydantic's problems: at the line of the first, with the lines of the others in the text."""
    parts: list[str] = []
    places: list[str] = []
    for problem in error.errors()[:SHOWN]:
        steps = problem["loc"]
        steps = (steps[0], *steps[2:]) if len(steps) > 1 and steps[0] in _TAGGED else steps
        places.append(document.where(*steps))
        line = places[-1].removeprefix(f"{document.path}:")
        what = f"{_path(steps)}: {_what(problem, steps)}" if steps else _what(problem, steps)
        parts.append(f"line {line}, {what}" if parts and steps else what)
    return RescoldoError("; ".join(parts), where=places[0], fix="docs/roles.md explains every field")


def _path(steps: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _what(problem: Any, steps: tuple[str | int, ...]) -> str:
    name, value, limits = problem["type"], problem["input"], problem.get("ctx", {})
    if name == "value_error":
        return str(limits["error"])
    if name == "missing":
        return "is missing"
    if name == "extra_forbidden":
        return _no_such_field(steps)
    if name in _EMPTY:
        return "is empty"
    if name == "union_tag_invalid":
        wanted = limits["expected_tags"].replace("'", "").replace(", ", " or ")
    elif name in _WANTED:
        wanted = _WANTED[name].format(**limits)
    else:
        return str(problem["msg"])
    shown = repr(value)[:60] if isinstance(value, str | int | float) else kind(value)
    return f"is {shown}: expected {wanted}"


def _no_such_field(steps: tuple[str | int, ...]) -> str:
    models: dict[str | int, type[BaseModel]] = {"sampling": SamplingSpec, "prompt": MessageTemplate}
    model = models.get(steps[0], RoleSpec) if len(steps) > 1 else RoleSpec
    known = [field.alias or name for name, field in model.model_fields.items()]
    near = closest(str(steps[-1]), known)
    return f"there is no such field{f': did you mean `{near}`?' if near else ''} (fields: {', '.join(known)})"
