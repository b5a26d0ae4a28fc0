"""Preference data: which of two answers is better, or whether an answer is good.

Read as TRL, LLaMA-Factory and OpenAI define them, and with a role's own inputs:

    {"prompt": …, "chosen": …, "rejected": …}          texts, or lists of messages
    {"chosen": [messages], "rejected": [messages]}      whole conversations that begin alike (or chosen_messages, …)
    {"messages" or "conversations": […], "chosen": {message}, "rejected": {message}}
    {"instruction": …, "input": …, "chosen": …, "rejected": …}
    {"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}
    {"concept": …, "chosen": …, "rejected": …}          the role's input (here BA's), and two answers as texts
    any conversation with "label" or "kto_tag": true or false

Each answer becomes a conversation of the generic role, and is checked and tokenized like one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.data.records import Line, is_prose, read_lines, refusal
from rescoldo.errors import RescoldoError
from rescoldo.role import Fault, Role, get_role
from rescoldo.role.conversation import COMPLETIONS, LISTED
from rescoldo.role.fault import Finding, errors, kind
from rescoldo.role.keys import JUDGED, unreviewed
from rescoldo.role.record import Record

ANSWERS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
)
_NOTED = frozenset(  # what publishers of pairs note about the two answers
    f"{first}{joint}{second}"
    for joint in "_-"
    for side in ("chosen", "rejected")
    for note in ("score", "rating", "model", "source", "avg_rating", "reward")
    for first, second in ((side, note), (note, side))
)


@dataclass(frozen=True)
class PreferenceForm:
    """A form of preference data.

    Attributes:
        wanted: what each line must have, for error messages.
        single: each answer is learned by itself, as good or bad; otherwise the two answers of a pair are compared.
    """

    wanted: str
    single: bool = False


FORMS: Mapping[str, PreferenceForm] = {
    "pairs": PreferenceForm("a chosen and a rejected answer"),
    "judged": PreferenceForm("a label (true or false), or chosen and rejected", single=True),
}


@dataclass(frozen=True)
class Judgement:
    """A line of preference data.

    Attributes:
        answers: conversations of the generic role that differ only in their answer: the preferred and the rejected one,
            or the single labelled one.
        good: whether the first answer is a good one.
    """

    answers: tuple[Record, ...]
    good: bool = True


def form_of(path: Path) -> str | None:
    """The form of a preference file, according to its first record; None for a file of other data.

    Raises:
        RescoldoError: the file cannot be read.
    """
    if is_prose(path):
        return None
    record = next((line.value for line in read_lines(path) if line.value is not None), {})
    if any(name in record for pair in ANSWERS for name in pair):
        return "pairs"
    return "judged" if any(isinstance(record.get(key), bool) for key in JUDGED) else None


def preference_lines(path: Path, role: Role, form: str) -> Iterator[tuple[Line, list[Judgement], list[Fault]]]:
    """Each line of a preference file with its judgements and its faults. In the form "judged" a pair becomes one good
    and one bad answer.

    Raises:
        RescoldoError: the file cannot be read.
    """
    generic = get_role("generic")
    for line in read_lines(path):
        if line.value is None or line.faults:
            yield line, [], line.faults
            continue
        judgements, findings = _judgements(line.value, role, generic, form)
        findings = findings or unreviewed(line.value)
        for judgement in judgements:
            for record in judgement.answers:
                record.line = line.number
        wrong = [Fault(str(path), line.number, *finding) for finding in errors(findings)]
        yield line, [] if wrong else judgements, wrong


def read_preferences(path: Path, role: Role, form: str) -> list[Judgement]:
    """All lines of a file of preferences, checked.

    Raises:
        RescoldoError: one error that names file, line and field of the first faults.
    """
    found: list[Judgement] = []
    faults: list[Fault] = []
    for _, judgements, wrong in preference_lines(path, role, form):
        found += judgements
        faults += wrong
    if faults:
        raise refusal(faults, "mend these lines, or leave them out (docs/preferences.md has the formats)")
    if not found:
        raise RescoldoError(
            "holds no records", where=str(path), fix="pass a JSON Lines file with one preference a line"
        )
    return found


def _judgements(record: dict[str, Any], role: Role, generic: Role, form: str) -> tuple[list[Judgement], list[Finding]]:
    """The judgements of a line, or its faults."""
    names = next((pair for pair in ANSWERS if any(name in record for name in pair)), None)
    if names is None:
        return _judged(record, role, generic) if FORMS[form].single else ([], [_not(record, "chosen", form)])
    marks = [key for key in JUDGED if isinstance(record.get(key), bool)]
    if marks:
        return [], [
            Finding(marks[0], "ambiguous", f"is given together with {names[0]} and {names[1]}: expected one of the two")
        ]
    both: list[Record] = []
    for name in names:
        plain, findings = _answered(record, name, names, role)
        if findings:
            return [], findings
        whole, findings = _checked(plain, generic)
        if whole is None:
            return [], [_named(finding, name, plain) for finding in findings]
        both.append(whole)
    chosen, rejected = both
    if chosen["turns"] != rejected["turns"]:
        what = f"answers another prompt than {names[0]}: expected two answers to the same prompt"
        return [], [Finding(names[1], "prompt", what)]
    if chosen["turns"].whole.messages[-1] == rejected["turns"].whole.messages[-1]:
        return [], [Finding(names[1], "same", f"is the same answer as {names[0]}: nothing is preferred")]
    if not FORMS[form].single:
        return [Judgement((chosen, rejected))], []
    return [Judgement((chosen,)), Judgement((rejected,), good=False)], []


def _judged(record: dict[str, Any], role: Role, generic: Role) -> tuple[list[Judgement], list[Finding]]:
    """A conversation with a label."""
    marks = [key for key in JUDGED if record.get(key) is not None]
    if not marks:
        return [], [_not(record, "label", "judged")]
    if len(marks) > 1 and record[marks[0]] != record[marks[1]]:
        return [], [Finding(marks[1], "ambiguous", f"says the contrary of {marks[0]}")]
    if not isinstance(record[marks[0]], bool):
        return [], [Finding(marks[0], "type", f"is {kind(record[marks[0]])}: expected true or false")]
    plain = {key: value for key, value in record.items() if key not in JUDGED}
    if _is_of(plain, role):
        own, findings = _checked(plain, role)
        if own is None:
            return [], findings
        plain = {"messages": [*role.messages(own), {"role": "assistant", "content": role.target(own)}]}
    whole, findings = _checked(plain, generic)
    if whole is None:
        return [], findings
    return [Judgement((whole,), record[marks[0]])], []


def _not(record: dict[str, Any], key: str, form: str) -> Finding:
    return Finding(
        key, "missing", f"is missing: expected {FORMS[form].wanted} in each line, this one has {', '.join(record)[:80]}"
    )


def _is_of(record: dict[str, Any], role: Role) -> bool:
    """Whether a line has the role's input fields and is not a conversation."""
    return not role.spec.conversational and role.input in record


def _checked(plain: dict[str, Any], role: Role, *, answers: bool = True) -> tuple[Record | None, list[Finding]]:
    """The record as the role reads it, None if the role's check finds errors; and the errors."""
    faults, whole = role.checked(plain, "", 0, answers=answers)
    findings = [Finding(f.field, f.code, f.what) for f in errors(faults)]
    return None if findings else whole, findings


def _named(finding: Finding, name: str, plain: dict[str, Any]) -> Finding:
    """A finding about the assembled conversation, moved to the field of the line that its text comes from."""
    field = finding.field
    listed = next((key for key in LISTED if key in plain), None)
    if listed and field.startswith(f"{listed}[{len(plain[listed]) - 1}]"):
        return finding._replace(field=name + field.removeprefix(f"{listed}[{len(plain[listed]) - 1}]"))
    first = field.split(".")[0].split("[")[0]
    return finding._replace(field=name + field.removeprefix(first)) if first in COMPLETIONS else finding


def _answered(
    record: dict[str, Any], name: str, names: tuple[str, str], role: Role
) -> tuple[dict[str, Any], list[Finding]]:
    """The line as a conversation that ends with the answer `name`."""
    value = record.get(name)
    if value is None:
        return {}, [Finding(name, "missing", f"is missing: expected together with {names[names[0] == name]}")]
    if not isinstance(value, str | dict | list):
        return {}, [Finding(name, "type", f"is {kind(value)}: expected a text or messages")]
    plain = {key: one for key, one in record.items() if key not in (*names, *_NOTED)}
    answer = [value] if isinstance(value, dict) else value
    listed = next((key for key in LISTED if key in plain), None)
    asked = plain.get("input")
    if isinstance(asked, dict):  # OpenAI's
        del plain["input"]
        if not isinstance(asked.get("messages"), list):
            return {}, [Finding("input.messages", "missing", "is missing: expected a list of messages")]
        plain = {**plain, **asked}
        listed = "messages"
    if listed and plain[listed] in [record[one] for one in names]:  # the list repeats one of the two
        del plain[listed]
        listed = None
    if listed:
        if not isinstance(plain[listed], list):
            return {}, [Finding(listed, "type", f"is {kind(plain[listed])}: expected a list of messages")]
        said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        return {**plain, listed: [*plain[listed], *said]}, []
    if _is_of(plain, role):
        return _own(plain, name, value, role)
    if "instruction" in plain:
        if not isinstance(value, str):
            return {}, [Finding(name, "type", f"is {kind(value)}: expected text")]
        return {**plain, "output": value}, []
    if "prompt" in plain and not _whole(answer, plain["prompt"]):
        return {**plain, "completion": answer}, []
    plain.pop("prompt", None)
    if isinstance(answer, list):
        return {**plain, "messages": answer}, []
    return {}, [Finding("prompt", "missing", "is missing: expected what both answer, in each line")]


def _own(plain: dict[str, Any], name: str, value: Any, role: Role) -> tuple[dict[str, Any], list[Finding]]:
    """A line with the role's own input fields; its answer is the text that the model should write."""
    if not isinstance(value, str) or not value.strip():
        what = f"is {kind(value)}: expected the answer as a text" if not isinstance(value, str) else "is empty"
        return {}, [Finding(name, "type", what)]
    own, findings = _checked(plain, role, answers=False)
    if own is None:
        return {}, findings
    return {"messages": [*role.messages(own), {"role": "assistant", "content": value}]}, []


def _whole(answer: Any, prompt: Any) -> bool:
    """Whether an answer is a whole conversation that contains the line's `prompt`."""
    first = answer[0] if isinstance(answer, list) and len(answer) > 1 else None
    return isinstance(first, dict) and first.get("content", first.get("value")) == prompt
