"""The metrics for roles. Each gives components in 0..1 and notes on what lost points."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rescoldo.phrase import Phrase
from rescoldo.role.fault import Finding
from rescoldo.role.rouge import rouge_l
from rescoldo.role.schema import Schema
from rescoldo.role.yaml_text import YamlRefusedError, parse_yaml

PERPLEXITY = "perplexity"  # of a whole dataset, measured by the engine; not a score of answers
NOTES = 20  # maximum number for one answer


Place = tuple[str | int, ...]
"""A place in an answer: keys and indices from the top; a single number is a line, from 1, or -1 for the last one."""


class Note(Phrase):
    """A description of what lost points, and its place in the answer (() if it has none)."""

    place: Place = ()

    @classmethod
    def at(cls, text: str, *place: str | int) -> Note:
        """A note with a place. A text that is no phrase is shown as it is in all languages."""
        note = cls(text.template, **text.values) if isinstance(text, Phrase) else cls("{text}", text=text)
        note.place = place
        return note


def place_of(note: str) -> Place:
    """The place in the answer that a note is about; () if it is unknown."""
    return note.place if isinstance(note, Note) else ()


@dataclass(frozen=True)
class Score:
    """One prediction's score.

    Attributes:
        total: mean of the components, 0..1.
        components: name → 0..1.
        notes: what lost points ("id_format: FR01 in functional_requirements[0]"); of type Note if the place is known.
        failures: metric → why its function gave no score; it counts as 0.
    """

    total: float
    components: dict[str, float]
    notes: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The input of a metric.

    Attributes:
        text: the answer as the model wrote it.
        value: the text parsed by the role's serialization; None if `fault`.
        fault: why it cannot be parsed; "" if it can.
        wanted_text, wanted: the same for the record's reference answer; None if the record has none.
        schema: the role's, if it has one.
    """

    text: str
    value: Any
    fault: str
    wanted_text: str | None
    wanted: Any
    schema: Schema | None


Outcome = tuple[dict[str, float], list[str]]


def exact_match(answer: Answer) -> Outcome:
    """1 if the answer equals the reference: as a value, or as a text up to white space."""
    if answer.wanted_text is None:
        return {}, []
    if isinstance(answer.wanted, str):
        hit = answer.text.split() == answer.wanted_text.split()
    else:
        hit = not answer.fault and answer.value == answer.wanted
    return {"exact_match": float(hit)}, [] if hit else [Phrase("exact_match: not the record's answer")]


def rouge(answer: Answer) -> Outcome:
    """ROUGE-L (F1) against the reference answer."""
    if answer.wanted_text is None:
        return {}, []
    value = rouge_l(answer.text, answer.wanted_text)
    return {"rouge_l": value}, [] if value == 1 else [Phrase("rouge_l: {value:.3f}", value=value)]


def valid(answer: Answer) -> Outcome:
    """1 if the answer can be parsed and satisfies the schema.

    Without a schema: if the reference answer is a JSON or YAML document, the answer must be one with the same keys; if
    it is neither, there is no component.
    """
    if answer.schema is None:
        wanted = structure(answer.wanted_text or "")
        if wanted is None:
            return {}, []
        fits = same_shape(wanted, structure(answer.text))
        return {"valid": float(fits)}, [] if fits else [Phrase("valid: not the structure of the record's answer")]
    if answer.fault:
        return {"valid": 0.0}, [unreadable(answer.fault)]
    findings = answer.schema.findings(answer.value)
    return {"valid": float(not findings)}, [_in_words("valid", finding) for finding in findings[:NOTES]]


def fields(answer: Answer) -> Outcome:
    """Credit for each part: `completeness`, the fraction of required fields that are present and not empty; and each
    field.

    A field scores 1 if it satisfies its own schema, else 0. A field that is a list gets half for the list itself (its
    length, its unique IDs) and half for the fraction of items that satisfy their schema.
    """
    assert answer.schema is not None, "load.py requires a schema with properties for this metric"
    schema, parts = answer.schema, answer.schema.properties()
    if answer.fault or not isinstance(answer.value, dict):
        why = answer.fault or Phrase("not an object")
        return dict.fromkeys(["completeness", *parts], 0.0), [unreadable(why)]
    value, required = answer.value, schema.required() or list(parts)
    missing = [name for name in required if value.get(name) in (None, "", [], {})]
    notes: list[str] = [lacking(name, value) for name in missing]
    components = {"completeness": (len(required) - len(missing)) / len(required)}
    for name, part in parts.items():
        if name not in value:
            components[name] = 0.0 if name in required else 1.0
            continue
        findings = schema.part(name).findings(value[name], name)
        notes += [_in_words(name, finding) for finding in findings]
        if part.get("type") == "array" and isinstance(value[name], list):
            components[name] = _list_credit(value[name], name, findings)
        else:
            components[name] = float(not findings)
    return components, notes[:NOTES]


def unreadable(why: str) -> Note:
    """The note on an answer that cannot be read."""
    return Note.at(Phrase("answer: {why}", why=why), *place_of(why))


def lacking(name: str, value: Mapping[str, Any]) -> Note:
    """The note on a field of an answer that has nothing in it, or is not there."""
    if name in value:
        return Note.at(Phrase("completeness: {name} is empty", name=name), name)
    return Note.at(Phrase("completeness: {name} is missing", name=name), name)


def _list_credit(items: list[Any], name: str, findings: list[Finding]) -> float:
    own = [finding for finding in findings if finding.field == name or finding.code == "x-unique"]
    bad = {m[1] for finding in findings if (m := re.match(rf"{re.escape(name)}\[(\d+)\]", finding.field))}
    share = (len(items) - len(bad)) / len(items) if items else 0.0
    return (float(not own) + share) / 2


def _in_words(component: str, finding: Finding) -> str:
    place = [int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", finding.field)]
    if finding.field and finding.field != component:
        field = finding.field
        return Note.at(
            Phrase("{component}: {field} {what}", component=component, field=field, what=finding.what), *place
        )
    return Note.at(Phrase("{component}: {what}", component=component, what=finding.what), *place)


def structure(text: str) -> Any:
    """The JSON or YAML document in `text`, scalars as text; None for prose (and for YAML with fewer than two keys)."""
    try:
        value = parse_yaml(text)
    except YamlRefusedError:
        return None
    if text.lstrip().startswith(("{", "[")):
        return value if isinstance(value, dict | list) else None
    named = isinstance(value, dict) and len(value) >= 2 and all(re.fullmatch(r"[A-Za-z_][\w-]*", key) for key in value)
    return value if named else None


def same_shape(wanted: Any, value: Any) -> bool:
    """Whether `value` has the same keys, lists and scalars as `wanted`, with any content; items may have the keys of
    any."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(
            name in value and same_shape(part, value[name]) for name, part in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return False
        common = set[str]()
        if wanted and all(isinstance(item, dict) for item in wanted):
            common = set.intersection(*(set(item) for item in wanted))
        return all(not common or (isinstance(item, dict) and common <= set(item)) for item in value)
    return not isinstance(value, dict | list)


NAMED: dict[str, Callable[[Answer], Outcome]] = {
    "exact_match": exact_match,
    "rouge_l": rouge,
    "valid": valid,
    "fields": fields,
}
NEED_ANSWERS = ("exact_match", "rouge_l", PERPLEXITY)


def from_function(result: Any, name: str) -> Outcome:
    """The components that a role's own function returned: a number, a mapping of numbers, or a Score.

    Raises:
        ValueError: anything else, or a number that is not between 0 and 1.
    """
    notes: list[str] = []
    if isinstance(result, Score):
        components, notes = dict(result.components), list(result.notes)
    elif isinstance(result, Mapping):
        components = {str(key): value for key, value in result.items()}
    else:
        components = {name: result}
    if not components:
        raise ValueError("returned no component")
    for key, value in components.items():
        if isinstance(value, bool | int | float) and 0 <= value <= 1:
            components[key] = float(value)
        else:
            raise ValueError(f"returned {str(value)[:40]} as {key}: expected a number between 0 and 1")
    return components, notes
