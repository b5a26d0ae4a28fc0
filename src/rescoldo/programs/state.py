"""The state file of a DSPy program (2.4 to 3.x): only its instructions, fields and examples are used.

A program of several steps is rebuilt from its data flow: a step runs when all of its inputs are available, from the
role's input or the answers of earlier steps. A state does not contain the program's code between the steps (loops,
branches, retrieval). So the program is rebuilt only if exactly one order is possible: every step gets all of its
inputs, no field is answered twice, and each answer is used by a later step or is part of the role's answer.

A state is meant to be loaded into an existing program, and so does not hold the names of the fields. Each field has a
prefix, which DSPy derives from the name ("Functional Requirements:") unless the author or an optimizer has written
another, and a description, which is "${name}" by default. A name is used only if it is certain; with a wrong one
perfect answers would score 0.

| DSPy | a step of the state |
|---|---|
| 2.4 | demos, signature_instructions, signature_prefix (of the last field), the same of `extended_signature`; with
save_field_meta=True also fields [{name, field_type, description, prefix}] | | 2.5 | demos, signature {instructions,
fields [{prefix, description}]}; ChainOfThought asks by `extended_signature` | | 2.6 and later | demos, signature, lm;
from 3.4 on `fields`: thresholds of decisions |"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.role import Role

THOUGHTS = ("reasoning", "rationale")  # the field of a chain of thought, by DSPy's version; not part of the answer
_THOUGHT_PREFIX = "Reasoning: Let's think step by step in order to"
_DEFAULT_DESCRIPTION = re.compile(r"\$\{([A-Za-z]\w{0,63})\}")
MAX_STEPS = 6
_UNUSED = {"lm", "traces", "train", "callbacks", "metadata", "history"}  # do not affect the prompt
_EXTENDED = "extended_signature"
_STEP = {"demos", "signature", _EXTENDED, "fields", *(f"{e}signature_{n}" for e in ("", "extended_")
         for n in ("instructions", "prefix"))} | _UNUSED  # fmt: skip
_OTHERWISE = "save the whole program with DSPy (program.save(DIRECTORY, save_program=True)) and give --allow-pickle"


@dataclass(frozen=True)
class Step:
    """One step of a program.

    Attributes:
        name: its name in the state; "" for the only step.
        inputs: the names of its input fields.
        fields: (name, description) of each field: inputs first, then outputs, in order.
        demos: the examples: field → text.
    """

    name: str
    instructions: str
    inputs: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]
    demos: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class State:
    """The steps and outputs of a program.

    Attributes:
        steps: in the order in which they run.
        outputs: the names of the fields of the answer.
    """

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


def read_state(state: Any, role: Role, file: Path, infer_prefix: Any) -> State:
    """Read a state as `program.save()` writes it.

    Args:
        infer_prefix: DSPy's function from a field's name to its prefix without the colon.

    Raises:
        RescoldoError: it is not a state; its steps have several possible orders or none; the name of a field is not
            certain or unknown to the role; an example does not fit the fields; or the state has anything else that may
            change the prompt.
    """
    read = []
    for name, step in _steps(state, file).items():
        signature = _signature(step, file)
        read.append(_Read(name, signature, signature["fields"], _demos(step["demos"], file)))
    if len(read) > 1:
        return _several(read, role, file, infer_prefix)
    (one,) = read
    names = _names(one.rows, one.demos, role, file, infer_prefix)
    outputs = _check_names(names, one.rows, role, file)
    ordered = sorted(names, key=lambda name: name != role.input)
    return State((_step(one, names, ordered, (role.input,), outputs, role, file),), outputs)


@dataclass(frozen=True)
class _Read:
    """A step as the file contains it."""

    name: str
    signature: Mapping[str, Any]
    rows: list[Mapping[str, Any]]
    demos: list[Mapping[str, Any]]


def _step(
    one: _Read, names: list[str], ordered: list[str], inputs: tuple[str, ...], outputs: tuple[str, ...], role: Role,
    file: Path,
) -> Step:  # fmt: skip
    described = {name: _described(row, name) for name, row in zip(names, one.rows, strict=True)}
    demos = tuple(_placed(demo, number, names, inputs, outputs, role, file) for number, demo in enumerate(one.demos, 1))
    fields = tuple((name, described[name]) for name in ordered)
    return Step(one.name, str(one.signature.get("instructions") or ""), inputs, fields, demos)


def _several(read: list[_Read], role: Role, file: Path, infer_prefix: Any) -> State:
    """The state of a program of several steps.

    Raises:
        RescoldoError: there are too many, or not exactly one order in which they can run.
    """
    if len(read) > MAX_STEPS:
        raise RescoldoError(
            f"is a program of {len(read)} steps: at most {MAX_STEPS} are rebuilt from a state", where=str(file),
            fix=_OTHERWISE,
        )  # fmt: skip
    elsewhere = [str(row["name"]) for one in read for row in one.rows if isinstance(row.get("name"), str)]
    elsewhere += [match[1] for one in read for row in one.rows
                  if (match := _DEFAULT_DESCRIPTION.fullmatch(str(row.get("description") or "")))]  # fmt: skip
    named = [_names(one.rows, one.demos, role, file, infer_prefix, more=elsewhere) for one in read]
    for one, names in zip(read, named, strict=True):
        if len(set(names)) != len(names):
            raise RescoldoError(
                f"two fields of the step {one.name} have the same name (fields: {', '.join(names)})", where=str(file)
            )
    orders = _orders(named, [one.rows for one in read], role)
    if len({frozenset(order.items()) for order in orders}) != 1:
        listed = "; ".join(f"{one.name}: {', '.join(names)}" for one, names in zip(read, named, strict=True))
        what = (
            "more than one order of its steps fits" if orders else "no order of its steps gives each step its inputs, "
        )
        what += "" if orders else f"uses each answer and ends with {role.spec.answer}"
        raise RescoldoError(f"{what} (fields of {listed})", where=str(file), fix=_OTHERWISE)
    order = orders[0]
    steps = []
    for place, inputs in order.items():
        one, names = read[place], named[place]
        told = tuple(name for name in names if name not in inputs)
        outputs = tuple(name for name in told if name not in THOUGHTS)
        steps.append(_step(one, names, [*inputs, *told], inputs, outputs, role, file))
    answered = tuple(name for step in steps for name, _ in step.fields if name not in step.inputs)
    parts = list(role.schema.properties()) if role.schema else []
    last = [role.spec.answer] if role.spec.answer in answered else [name for name in answered if name in parts]
    return State(tuple(steps), known_outputs(last, role, str(file)))


def _orders(
    named: list[list[str]], rows: list[list[Mapping[str, Any]]], role: Role
) -> list[dict[int, tuple[str, ...]]]:
    """The ways in which steps with these fields can feed each other: step → its inputs, in the order of running."""
    parts = set(role.schema.properties()) if role.schema else set()
    found: list[dict[int, tuple[str, ...]]] = []

    def run(order: dict[int, tuple[str, ...]], known: frozenset[str]) -> None:
        if len(order) == len(named):
            used = {name for inputs in order.values() for name in inputs}
            left = known - used - {role.input}
            if left and (left == {role.spec.answer} or left <= parts):
                found.append(order)
            return
        for place, names in enumerate(named):
            if place in order:
                continue
            inputs = tuple(takewhile(lambda name: name in known, names))
            answered = [name for name in names[len(inputs) :] if name not in THOUGHTS]
            told = [name for name, row in zip(names, rows[place], strict=True) if row.get("field_type") == "input"]
            if inputs and answered and known.isdisjoint(answered) and (not told or tuple(told) == inputs):
                run({**order, place: inputs}, known | set(answered))

    run({}, frozenset({role.input}))
    return found


def known_outputs(names: Collection[str], role: Role, where: str) -> tuple[str, ...]:
    """The outputs of a program that the role scores, from all of its outputs: the role's answer as one text, or each
    field of the answer by itself.

    Raises:
        RescoldoError: there are other outputs, or some are missing.
    """
    answer = tuple(name for name in names if name not in THOUGHTS)
    parts = list(role.schema.properties()) if role.schema else []
    if answer == (role.spec.answer,) or (parts and sorted(answer) == sorted(parts)):
        return answer
    each = f", or each of {', '.join(parts)}" if parts else ""
    others = [name for name in answer if name not in parts and name != role.spec.answer]
    missing = [name for name in parts if name not in answer]
    what = (
        f"the program answers with {', '.join(others)}, which the role {role.name} does not know"
        if others
        else f"the program answers with {', '.join(answer)}, without {', '.join(missing)}"
        if answer and role.spec.answer not in answer
        else f"the program answers with {', '.join(answer) or 'nothing'}"
    )
    raise RescoldoError(
        f"{what}: expected {role.spec.answer} alone{each}",
        where=where,
        fix=f"name the signature's fields so, for example dspy.Predict('{role.input} -> {role.spec.answer}')",
    )


def _steps(state: Any, file: Path) -> Mapping[str, Mapping[str, Any]]:
    """The steps by their names in the state.

    Raises:
        RescoldoError: there are none, or the state has other entries that may change the prompt.
    """

    def is_step(value: Any) -> bool:
        asks = isinstance(value, Mapping) and ("signature" in value or "signature_instructions" in value)
        return asks and "demos" in value

    if not isinstance(state, Mapping):
        steps = {}
    elif is_step(state):
        steps = {"": state}
    else:
        steps = {str(name): value for name, value in state.items() if is_step(value)}
    if not steps:
        raise RescoldoError("is not a DSPy program's state", where=str(file), fix="name what program.save() wrote")
    others = [] if "" in steps else [key for key in state if key not in steps and key != "metadata"]
    for name, step in steps.items():
        unknown = [key for key in step if key not in _STEP and step[key] not in (None, [], {}, "")]
        others += [f"{name}.{key}".strip(".") for key in unknown]
    if others:
        raise RescoldoError(
            f"the state holds {', '.join(map(str, others))}, which may change what is asked and cannot be rebuilt",
            where=str(file),
            fix=_OTHERWISE,
        )
    return steps


def _signature(step: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """The {"instructions", "fields"} of a step's prompt."""
    if "signature" in step:
        if step.get("fields"):
            raise RescoldoError(
                "the state configures decisions (fields), which are not rebuilt", where=str(file), fix=_OTHERWISE
            )
        found = step.get(_EXTENDED) or step["signature"]  # a chain of thought of 2.5 uses the former
    else:
        if not step.get("fields"):
            raise RescoldoError(
                "was saved by DSPy 2.4, whose state does not say which fields the program has",
                where=str(file),
                fix="save it again with program.save(FILE, save_field_meta=True), or with a later version of DSPy",
            )
        words = step.get(f"{_EXTENDED}_instructions") or step["signature_instructions"]
        found = {"instructions": words, "fields": step["fields"]}
    rows = found.get("fields", []) if isinstance(found, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise RescoldoError("the signature's fields are not a list of fields", where=str(file))
    return {**found, "fields": rows}


def _demos(rows: Any, file: Path) -> list[Mapping[str, Any]]:
    if not isinstance(rows, list):
        raise RescoldoError("the examples (demos) are not a list", where=str(file))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise RescoldoError(f"example {number} is not a mapping of fields", where=str(file))
    return rows


def _names(
    rows: list[Mapping[str, Any]],
    demos: list[Mapping[str, Any]],
    role: Role,
    file: Path,
    infer_prefix: Any,
    more: Collection[str] = (),
) -> list[str]:
    """The name of each field. `more`: names that occur in the program's other steps.

    Raises:
        RescoldoError: a name is not certain.
    """
    known = [role.input, role.spec.answer, *(role.schema.properties() if role.schema else ()), *THOUGHTS]
    known += [name for name in dict.fromkeys(more) if name not in known]
    shown = list(dict.fromkeys(str(key) for demo in demos for key in demo))
    candidates = [*known, *(key for key in shown if key not in known)]
    by_prefix: dict[str, str] = {}
    for name in candidates:
        by_prefix.setdefault(f"{infer_prefix(name)}:", name)
    names = [_name(row, by_prefix, shown) for row in rows]
    unnamed = [i for i, name in enumerate(names) if not name]
    if len(unnamed) == 1 and demos:  # then the one field of the examples without a row is its name
        left = [name for name in known if name not in names and all(demo.get(name) for demo in demos)]
        if len(left) == 1:
            names[unnamed[0]], unnamed = left[0], []
    if unnamed:
        prefixes = ", ".join(repr(rows[i].get("prefix")) for i in unnamed)
        raise RescoldoError(
            f"which field of the signature is meant by the prefix {prefixes} is not certain: the state holds no names",
            where=str(file),
            fix=f"leave out the field's own `prefix` or `desc` and save it again; or {_OTHERWISE}",
        )
    return names


def _name(row: Mapping[str, Any], by_prefix: Mapping[str, str], shown: Collection[str]) -> str:
    """A field's name; "" if it is not certain."""
    if isinstance(row.get("name"), str):
        return str(row["name"])
    prefix, description = str(row.get("prefix") or "").strip(), str(row.get("description") or "")
    if default := _DEFAULT_DESCRIPTION.fullmatch(description):
        return default[1]
    if prefix == _THOUGHT_PREFIX:
        return next((name for name in THOUGHTS if name in shown), THOUGHTS[0])
    return by_prefix.get(prefix, "")


def _check_names(names: list[str], rows: list[Mapping[str, Any]], role: Role, file: Path) -> tuple[str, ...]:
    """The names of the answer's fields.

    Raises:
        RescoldoError: the program does not go from the role's input alone to the role's answer.
    """
    listed = ", ".join(names) or "none"
    if len(set(names)) != len(names):
        raise RescoldoError(f"two fields have the same name (fields: {listed})", where=str(file))
    thought = min((names.index(name) for name in THOUGHTS if name in names), default=None)
    # inputs come before outputs, and a chain of thought is the first output
    inputs = {name for name, row in zip(names, rows, strict=True) if row.get("field_type") == "input"}
    inputs |= set(names[:thought]) if thought is not None and names[0] == role.input else set()
    unknown = [name for name in names if name not in THOUGHTS and name != role.input and name in inputs]
    if role.input not in names or unknown:
        raise RescoldoError(
            f"the program does not go from {role.input} alone to an answer (fields: {listed})",
            where=str(file),
            fix=f"the role {role.name} asks with {role.input}",
        )
    return known_outputs([name for name in names if name != role.input], role, str(file))


def _described(row: Mapping[str, Any], name: str) -> str:
    text = row.get("description")
    return text if isinstance(text, str) and text else f"${{{name}}}"


def _placed(
    demo: Mapping[str, Any],
    number: int,
    names: list[str],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    role: Role,
    file: Path,
) -> dict[str, str]:
    """An example by the fields' names. Like DSPy, accept one without some of the outputs, or without the thought.

    Raises:
        RescoldoError: an input is missing, or the whole answer.
    """
    found = {name: _as_text(demo[name], name, role) for name in names if demo.get(name) not in (None, "", [], {})}
    own, other = ([name for name in THOUGHTS if (name in names) == inside] for inside in (True, False))
    if own and own[0] not in found and other and isinstance(demo.get(other[0]), str):
        found[own[0]] = demo[other[0]]
    if any(name not in found for name in inputs) or not any(name in found for name in outputs):
        keys = ", ".join(map(str, demo)) or "nothing"
        raise RescoldoError(
            f"example {number} cannot be shown: expected {', '.join(inputs)} and {', '.join(outputs)}, found {keys}",
            where=str(file),
            fix="save the program again with examples of its own fields",
        )
    return found


def _as_text(value: Any, name: str, role: Role) -> str:
    if isinstance(value, str):
        return value
    if name == role.spec.answer and role.schema:
        return role.target({role.input: "", name: value})
    return json.dumps(value, ensure_ascii=False)
