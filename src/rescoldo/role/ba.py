"""The Business Analyst's metric, which scores requirements in YAML. The role itself is builtin/ba/role.yaml.

Details of the metric:

- Values are the text as written (see yaml_text): `id: 001` is not an ID, `priority: Yes` is not a priority, a title
  `2024-01-01` has ten characters. Surrounding white space is ignored. null and an empty string, list or mapping are
  empty.
- Priorities are spelled exactly High, Medium, Low.
- An empty list earns the third for being a list, but not those for two items and for complete items.
- An ID that occurs twice in its list does not match at any of its occurrences. Items without an ID do not count in the
  number of IDs.
- A list field that is a YAML string is parsed in a DSPy prediction (a mapping), but not in a model's text.
- A code fence is removed only if the text begins and ends with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import Any

from rescoldo.phrase import Phrase
from rescoldo.role.metrics import Note, Score, lacking
from rescoldo.role.yaml_text import YamlRefusedError, parse_yaml, strip_fence

LISTS = {"functional_requirements": "FR", "non_functional_requirements": "NFR", "constraints": "C"}
FIELDS = ("title", "description", *LISTS)
ITEM_FIELDS = ("id", "description", "priority")
PRIORITIES = ("High", "Medium", "Low")
COMPONENTS = ("completeness", "title", "description", *LISTS, "id_format")
TITLE_LENGTH = (10, 100)
DESCRIPTION_LENGTH = 100


def score(prediction: Any, record: dict[str, Any] | None = None) -> Score:
    """The BA metric: the mean of seven components, each 0..1 (COMPONENTS). The record is not used."""
    try:
        fields = parse_answer(prediction)
    except YamlRefusedError as refusal:
        return Score(
            0.0,
            dict.fromkeys(COMPONENTS, 0.0),
            [Note.at(Phrase("answer: not a YAML mapping: {why}", why=refusal.what), *filter(None, [refusal.line]))],
        )
    notes: list[str] = []
    components = {
        "completeness": _completeness(fields, notes),
        "title": _length("title", fields, *TITLE_LENGTH, notes),
        "description": _length("description", fields, DESCRIPTION_LENGTH, None, notes),
        **{name: _list(name, fields.get(name), notes) for name in LISTS},
        "id_format": _id_format(fields, notes),
    }
    return Score(sum(components.values()) / len(components), components, notes)


def parse_answer(prediction: Any) -> dict[str, Any]:
    """The fields of an answer: a model's text, or the mapping (or object with `toDict`) that a DSPy program returns.

    Raises:
        YamlRefusedError: the text is not one YAML mapping within the bounds of yaml_text.
    """
    if isinstance(prediction, str):
        value = parse_yaml(strip_fence(prediction))
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise YamlRefusedError(Phrase("it is a list"))
            raise YamlRefusedError(Phrase("it is nothing") if value is None else Phrase("it is plain text"))
        return value
    if not isinstance(prediction, Mapping) and hasattr(prediction, "toDict"):
        prediction = prediction.toDict()
    if not isinstance(prediction, Mapping):
        raise YamlRefusedError(Phrase("it is a {kind}", kind=type(prediction).__name__))
    fields = {str(name): value for name, value in prediction.items()}
    for name in LISTS:
        if isinstance(fields.get(name), str):
            try:
                parsed = parse_yaml(strip_fence(fields[name]))
            except YamlRefusedError:
                continue  # the field stays a string: present, but not a list
            if isinstance(parsed, list):
                fields[name] = parsed
        elif isinstance(fields.get(name), tuple):
            fields[name] = list(fields[name])
    return fields


def _text(value: Any) -> str:
    """A scalar as stripped text; "" for None, lists, mappings and other objects."""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, int | float | date):
        return ""
    try:
        return str(value)
    except ValueError:  # an integer with too many digits to print
        return ""


def _empty(value: Any) -> bool:
    return not value if isinstance(value, list | tuple | set | Mapping) else not _text(value)


def _item(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)  # a DSPy signature may declare its items as pydantic models
    dumped = dump() if callable(dump) else None
    return dumped if isinstance(dumped, Mapping) else None


def _completeness(fields: dict[str, Any], notes: list[str]) -> float:
    missing = [name for name in FIELDS if _empty(fields.get(name))]
    notes.extend(lacking(name, fields) for name in missing)
    return (len(FIELDS) - len(missing)) / len(FIELDS)


def _length(name: str, fields: dict[str, Any], least: int, most: int | None, notes: list[str]) -> float:
    length = len(_text(fields.get(name)))
    if length >= least and (most is None or length <= most):
        return 1.0
    if most is None:
        what = Phrase("{name}: {length} characters, at least {least} wanted", name=name, length=length, least=least)
    else:
        what = Phrase(
            "{name}: {length} characters, {least} to {most} wanted", name=name, length=length, least=least, most=most
        )
    notes.append(Note.at(what, name))
    return 0.0


def _list(name: str, value: Any, notes: list[str]) -> float:
    if not isinstance(value, list):
        notes.append(Note.at(Phrase("{name}: not a list", name=name), name))
        return 0.0
    thirds = 1
    if len(value) >= 2:
        thirds += 1
    else:
        one, none = (
            Phrase("{name}: 1 item, at least 2 wanted", name=name),
            Phrase("{name}: 0 items, at least 2 wanted", name=name),
        )
        notes.append(Note.at(one if value else none, name))
    faults: list[str] = []
    for index, raw in enumerate(value):
        item = _item(raw)
        if item is None:
            what = Phrase("{item}: not a mapping of id, description and priority", item=f"{name}[{index}]")
            faults.append(Note.at(what, name, index))
            continue
        faults.extend(
            Note.at(Phrase("{item}: no {field}", item=f"{name}[{index}]", field=field), name, index, field)
            for field in ITEM_FIELDS[:2]
            if not _text(item.get(field))
        )
        priority = _text(item.get("priority"))
        if not priority:
            what = Phrase("{item}: no priority, one of High, Medium or Low", item=f"{name}[{index}]")
            faults.append(Note.at(what, name, index, "priority"))
        elif priority not in PRIORITIES:
            what = Phrase(
                "{item}: priority {value} is not High, Medium or Low",
                item=f"{name}[{index}]", value=repr(priority[:40]),
            )  # fmt: skip
            faults.append(Note.at(what, name, index, "priority"))
    notes.extend(faults)
    return (thirds + (1 if value and not faults else 0)) / 3


def _id_format(fields: dict[str, Any], notes: list[str]) -> float:
    matching = total = 0
    for name, prefix in LISTS.items():
        value = fields.get(name)
        if not isinstance(value, list):
            continue
        items = [(index, _item(raw)) for index, raw in enumerate(value)]
        ids = [(index, _text(item.get("id"))) for index, item in items if item is not None and _text(item.get("id"))]
        times = Counter(text for _, text in ids)
        total += len(ids)
        for index, text in ids:
            if not re.fullmatch(prefix + "[0-9]{3}", text):
                what = Phrase(
                    "id_format: {id} in {item} is not {prefix} and three digits",
                    id=text[:40], item=f"{name}[{index}]", prefix=prefix,
                )  # fmt: skip
                notes.append(Note.at(what, name, index, "id"))
            elif times[text] > 1:
                what = Phrase("id_format: {id} occurs {n} times in {name}", id=text, n=times[text], name=name)
                notes.append(Note.at(what, name, index, "id"))
            else:
                matching += 1
    if not total:
        notes.append(Phrase("id_format: no IDs"))
        return 0.0
    return matching / total
