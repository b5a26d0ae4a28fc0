"""The mapping of columns to fields of a record: given by the user, or derived from the columns' names."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.intake.source import Row
from rescoldo.role import Role, keys
from rescoldo.role.conversation import COMPLETIONS, FORMATS, LISTED
from rescoldo.role.prompt import fields_used

MAX_LITERAL = 1 << 20  # maximum length in characters of a cell that is parsed as a Python list
_LISTS = {"messages": ("messages", "chat", "dialog", "dialogue"), "conversations": ("conversations", "conversation")}
_INSTRUCTION = ("instruction", "instruccion", "anweisung")
_INPUT = ("input", "entrada", "eingabe")
_CONTEXT = ("context", "contexto", "kontext")
_PROMPT = ("prompt", "question", "query", "user", "user_input", "pregunta", "consulta", "frage", "anfrage", "problem")
_ANSWER = (*COMPLETIONS, "output_text", "respuesta", "salida", "antwort", "ausgabe", "reply", "solution", "assistant")
_TEXT, _LABEL = ("text", "texto"), ("label", "etiqueta", "class", "category", "categoria", "label_text")
_PAIR_OF_ANSWERS = ("chosen", "rejected")
_SYSTEM = ("system", "system_prompt", "system_message")
_CARRIED = frozenset({"system", "history", "tools", "functions"})  # accepted in addition to any conversation format
_STRUCTURED = frozenset(  # JSON in a table's cell
    {
        *LISTED,
        "history",
        "tools",
        "functions",
        "tool_calls",
        "metadata",
        "images",
        "audios",
        "videos",
        "chosen_messages",
    }
    | {"rejected_messages", "function_call"}
)
# Columns recognized regardless of case. `Name` is not among them, as in tables it is rarely a speaker's name.
_TELLING = {*keys.MEANINGS, *keys.JUDGED, *keys.LEARNED} - {"name", "documents"}
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "si": True, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
_PAIR = re.compile(r",(?=[\w.-]+=)")


@dataclass(frozen=True)
class Plan:
    """The mapping of a source's columns to fields.

    Attributes:
        targets: column → field; "" drops the column.
        nested: the columns mapped by the user; a dot in their field leads into an object.
        form: the kind of the resulting records, for people.
        carried: the fields that each record must have if the form is not one of the role's own (preferences, plain
            text): these are required, and all others are passed through unchanged.
    """

    role: Role
    targets: Mapping[str, str]
    form: str
    tabular: bool
    nested: frozenset[str] = frozenset()
    carried: tuple[str, ...] = ()

    def target(self, column: str) -> str:
        """The field of a column; also for a column that first occurs in a later object."""
        found = self.targets.get(column)
        return _other_field(self.role, column) if found is None else found

    def record(self, row: Row) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The record of a readable row, and a list of (column, fault)."""
        record: dict[str, Any] = {}
        faults: list[tuple[str, str]] = []
        for column, value in (row.values or {}).items():
            target = self.target(column)
            if not target or value is None or (self.tabular and isinstance(value, str) and not value.strip()):
                continue
            try:
                wanted = self._value(target, value)
            except ValueError as error:
                faults.append((column, str(error)))
                continue
            if not _put(record, self._steps(column, target), wanted):
                faults.append((column, f"maps to {target}, but another column puts a value other than an object there"))
        answer = self.role.spec.answer
        if self.role.schema and not self.role.spec.conversational and answer in record:
            record[answer] = self.role.schema.conform(record[answer])
        return record, faults

    def _steps(self, column: str, target: str) -> list[str]:
        """The keys that lead to a column's field."""
        if column in self.nested:
            return target.split(".")
        return ["metadata", column.strip()] if target == f"metadata.{column.strip()}" else [target]

    def _value(self, target: str, value: Any) -> Any:
        """Convert a value to the type of its field; raises ValueError if that is impossible."""
        if self.tabular and isinstance(value, str):
            if target in _STRUCTURED:
                return _structure(value)
            if target in keys.JUDGED or target in keys.LEARNED:
                return _TRUTH.get(value.strip().casefold(), value)
        if target in _texts(self.role) and isinstance(value, int | float):
            return json.dumps(value)  # a number or boolean, as JSON writes it
        return value


def parse_map(texts: Sequence[str]) -> dict[str, str]:
    """Parse --map FIELD=COLUMN,… to field → column. A column's name may contain commas.

    Raises:
        RescoldoError: a syntax error, or a field is named twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        for pair in _PAIR.split(text):
            field, equals, column = pair.partition("=")
            field, column = field.strip(), column.strip()
            if not equals or not field or not column:
                raise RescoldoError(f"{pair!r} is not FIELD=COLUMN", where="--map", fix="--map concept=Idea")
            if field in found:
                raise RescoldoError(f"{field} is named twice", where="--map", fix="name it once")
            found[field] = column
    return found


def fitting_role(columns: Sequence[str], given: Mapping[str, str]) -> str:
    """The role for records if the user names none: ba if its two fields are there, else generic."""
    names = {_plain(column) for column in columns} | {field.partition(".")[0] for field in given}
    return "ba" if {"concept", "requirements"} <= names else "generic"


def make_plan(
    role: Role, columns: Sequence[str], tabular: bool, given: Mapping[str, str], without: Collection[str], where: str
) -> Plan:
    """Map each column to a field.

    Args:
        given: field → column, from the user.
        without: columns to drop.

    Raises:
        RescoldoError: there is no such column or field, or no columns for input and answer were recognized.
    """
    for column in [*given.values(), *without]:
        if column not in columns:
            raise RescoldoError(
                f"there is no column {column!r}", where=where, fix=f"its columns: {', '.join(columns)[:500]}"
            )
    for field in given:
        if not _is_field(role, field):
            fields = ", ".join([role.input, role.spec.answer] if _by_record(role) else [*FORMATS, *COMPLETIONS])
            raise RescoldoError(
                f"the role {role.name} reads no {field!r}", where=f"--map {field}={given[field]}",
                fix=f"{fields}; or metadata.{field}, to keep it without reading it",
            )  # fmt: skip
    targets = {column: field for field, column in given.items()}
    if len(targets) < len(given):
        raise RescoldoError("a column is given to two fields", where="--map", fix="name each column once")
    targets |= dict.fromkeys(without, "")
    free = [column for column in columns if column not in targets]
    recognized, form, carried = (_of_record if _by_record(role) else _of_chat)(role, free, set(given), where)
    targets |= recognized
    for column in columns:
        targets.setdefault(column, _other_field(role, column))
    double = [field for field in targets.values() if field and list(targets.values()).count(field) > 1]
    if double:
        both = [column for column, field in targets.items() if field == double[0]]
        raise RescoldoError(
            f"the columns {' and '.join(map(repr, both))} would both be {double[0]}", where=where,
            fix=f"--map {double[0]}={both[0]} --without {both[1]!r}, or vice versa",
        )  # fmt: skip
    return Plan(role, targets, form, tabular, frozenset(given.values()), carried)


def _by_record(role: Role) -> bool:
    return not role.spec.conversational


def _fields(role: Role) -> set[str]:
    """The fields of a role's records: input, answer, and what else its prompt uses."""
    used = set[str]().union(*(fields_used(template) for _, template in role.spec.templates()))
    return {role.input, role.spec.answer, *used, *role.spec.annotations} if _by_record(role) else used


def _texts(role: Role) -> set[str]:
    if _by_record(role):
        return {role.input} | ({role.spec.answer} if role.schema is None else set())
    return {"instruction", "input", "context", "prompt", "system", "text", "chosen", "rejected", *COMPLETIONS}


def _is_field(role: Role, field: str) -> bool:
    head = field.partition(".")[0]
    known = {*_fields(role), *keys.ANNOTATIONS}
    if not _by_record(role):
        known |= {*FORMATS, *COMPLETIONS, *_CARRIED, *keys.MEANINGS, *keys.JUDGED, *keys.LEARNED, "input", "context"}
        known |= {"text"}
    return head in known


def _other_field(role: Role, column: str) -> str:
    """The field of a column that is neither input nor answer: its own name if that is known, else in metadata."""
    name = column.strip()
    if _is_field(role, name) and "." not in name:
        return name
    if _by_record(role):
        return name
    small = name.lower()  # compared like the keys of lines, so that `metadata` hides nothing that `train` would refuse
    return small if small in _TELLING else f"metadata.{name}"


def _of_record(
    role: Role, free: Sequence[str], given: set[str], where: str
) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """Columns named like the role's fields."""
    found: dict[str, str] = {}
    heads = {field.partition(".")[0] for field in given}
    names = {_plain(column): column for column in free}
    for field in sorted(_fields(role) - heads):
        column = names.get(_plain(field))
        if column is not None:
            found[column] = field
    missing = [name for name in (role.input, role.spec.answer) if name not in {*heads, *found.values()}]
    if missing == [role.spec.answer] and {*_PAIR_OF_ANSWERS} <= set(names):
        return found | {names[name]: name for name in _PAIR_OF_ANSWERS}, "preferences", (role.input, *_PAIR_OF_ANSWERS)
    if missing:
        raise _unrecognized(role, missing, free, where)
    return found, f"{role.name}'s records ({role.input}, {role.spec.answer})", ()


def _of_chat(
    role: Role, free: Sequence[str], given: set[str], where: str
) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """Columns named like the parts of a conversation, in any of its formats."""
    names: dict[str, list[str]] = {}
    for column in free:
        names.setdefault(_plain(column), []).append(column)
    found: dict[str, str] = {}

    def take(field: str, words: Sequence[str]) -> bool:
        """Map a column to the field: the given one, or one with one of these names (the first match if it is the
        field's own name). Returns whether there is one."""
        if field in given or field in found.values():
            return True
        hits = [column for word in words for column in names.get(word, []) if column not in found]
        own = [column for column in hits if _plain(column) == field]
        if len(own or hits) > 1:
            raise RescoldoError(
                f"the columns {' and '.join(map(repr, (own or hits)[:3]))} could each be {field}", where=where,
                fix=f"say which one: --map {field}={hits[0]}",
            )  # fmt: skip
        if hits:
            found[(own or hits)[0]] = field
        return bool(hits)

    answered = given & set(COMPLETIONS)
    for field, words in _LISTS.items():
        if take(field, words):
            take("system", _SYSTEM)
            return found, f"conversations ({FORMATS[field]}'s {field})", ()
    for pair in (
        _PAIR_OF_ANSWERS,
        ("preferred_output", "non_preferred_output"),
        ("chosen_messages", "rejected_messages"),
    ):
        if all(take(field, (field,)) for field in pair):
            take("prompt", _PROMPT)
            return found, "preferences", pair
    asked = "instruction" if take("instruction", _INSTRUCTION) else ""
    if asked:
        take("input", _INPUT)
        take("context", _CONTEXT)
    elif take("prompt", (*_PROMPT, *_INSTRUCTION)) or ("text" not in given and take("prompt", _INPUT)):
        asked = "prompt"
    usual = "output" if asked == "instruction" else COMPLETIONS[0]
    own = next((name for name in COMPLETIONS if name in names), usual)  # all COMPLETIONS are readable: keep the name
    if asked and (answered or take(own, _ANSWER) or take(usual, _LABEL)):
        take("system", _SYSTEM)
        return found, f"{FORMATS[asked]} records", ()
    if not asked and take("text", _TEXT):
        text = next((column for column, field in found.items() if field == "text"), "")
        if text and take(usual, (*_LABEL, *_ANSWER)):
            found[text] = "prompt"
            return found, "texts and their labels, as prompt/completion", ()
        return found, "plain text", ("text",)
    missing = [COMPLETIONS[0]] if asked else ["prompt", COMPLETIONS[0]]
    raise _unrecognized(role, missing, free, where)


def _unrecognized(role: Role, missing: Sequence[str], free: Sequence[str], where: str) -> RescoldoError:
    pairs = ",".join(f"{name}=COLUMN" for name in missing)
    listed = ", ".join(free)[:500]
    return RescoldoError(
        f"no column is recognized as {' or as '.join(missing)} (role {role.name}); its columns: {listed}",
        where=where, fix=f"say which: --map {pairs}; or another --role; or --header N, if line or row N has the names",
    )  # fmt: skip


def _plain(name: str) -> str:
    """A column's name, normalized for comparison: lower case, no accents, _ between words."""
    text = unicodedata.normalize("NFKD", name.strip().casefold())
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    return re.sub(r"[\s-]+", "_", text)


def _structure(text: str) -> Any:
    """Parse a list or object in a cell, written as JSON or as Python prints it.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        if len(text) <= MAX_LITERAL:
            try:
                value = ast.literal_eval(text.strip())
                return json.loads(json.dumps(value, allow_nan=False))
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                pass
        raise ValueError(f"is not a JSON list or object ({error})") from None


def _put(record: dict[str, Any], steps: Sequence[str], value: Any) -> bool:
    """Set a field, nested if there are several steps. Returns False if a value other than an object is in the way."""
    holder = record
    for step in steps[:-1]:
        inner = holder.setdefault(step, {})
        if not isinstance(inner, dict):
            return False
        holder = inner
    last = steps[-1]
    if isinstance(holder.get(last), dict) and isinstance(value, dict):
        holder[last] = {**holder[last], **value}
        return True
    if last in holder:
        return False
    holder[last] = value
    return True
