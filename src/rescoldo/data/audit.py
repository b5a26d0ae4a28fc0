"""Auditing datasets: faults within a record, duplicates within a file, overlap between training and validation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rescoldo.data.chat_template import tools_of
from rescoldo.data.preferences import form_of, preference_lines
from rescoldo.data.records import is_prose, read_lines
from rescoldo.data.similar import near_pairs
from rescoldo.data.text import KEY, is_text, read_documents, text_rows
from rescoldo.role import Fault, Role, get_role
from rescoldo.role.fault import errors
from rescoldo.role.record import Record
from rescoldo.words import same


@dataclass
class FileAudit:
    """The result for one file: its number of records and its faults."""

    file: str
    records: int
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Audit:
    """The results for all files; `across` has the faults between files (training inputs in the validation file)."""

    files: list[FileAudit]
    across: list[Fault] = field(default_factory=list)

    @property
    def faults(self) -> list[Fault]:
        """All faults of all files."""
        return [fault for file in self.files for fault in file.faults] + self.across

    @property
    def ok(self) -> bool:
        """Whether there are no errors (warnings are allowed)."""
        return not errors(self.faults)

    def as_json(self) -> dict[str, Any]:
        """The JSON that `rescoldo data audit --json` prints."""
        return {
            "ok": self.ok,
            "files": [
                {
                    "file": file.file,
                    "records": file.records,
                    "errors": len(errors(file.faults)),
                    "warnings": sum(fault.level == "warning" for fault in file.faults),
                    "fixable": sum(fault.fixable for fault in file.faults),
                }
                for file in self.files
            ],
            "codes": dict(Counter(fault.code for fault in self.faults)),
            "faults": [asdict(fault) for fault in self.faults],
        }


@dataclass(frozen=True)
class _Entry:
    file: str
    line: int
    field: str
    asked: str
    key: str
    answer: str
    sentences: list[str]


def audit(paths: Sequence[Path], role: Role | None = None) -> Audit:
    """Check dataset files; several files are also checked for inputs that they share. The default `role` is ba.

    Raises:
        RescoldoError: a file cannot be read at all.
    """
    role = role or get_role()
    result = Audit([])
    entries: list[list[_Entry]] = []
    for path in paths:
        file = FileAudit(str(path), 0)
        own: list[_Entry] = []
        if is_text(path, role):
            _audit_text(path, file)
            result.files.append(file)
            continue
        form = form_of(path) if role.spec.conversational else None
        if form is not None:
            entries.append(_audit_preferences(path, role, form, file))
            result.files.append(file)
            continue
        for line in read_lines(path):
            file.faults += line.faults
            if line.value is None:
                continue
            file.records += 1
            faults, record = checked(role, line.value, str(path), line.number)
            file.faults += faults
            if record is not None and (key := key_of(role, record)):
                question, listed, answer = role.question(record), sentences(role, record), answer_of(role, record)
                own.append(_Entry(str(path), line.number, role.input, question, key, answer, listed))
        if not file.records and not file.faults:
            file.faults.append(Fault(str(path), 1, "", "no-records", "holds no records: expected one example a line"))
        file.faults += _among(own, role)
        file.faults.sort(key=lambda fault: fault.line)
        result.files.append(file)
        entries.append(own)
    result.across = _across(entries, role)
    return result


def checked(role: Role, value: dict[str, Any], file: str, line: int) -> tuple[list[Fault], Record | None]:
    """Role.checked of a line, with the record where nothing is wrong with what it asks, whatever its answer."""
    faults, record = role.checked(value, file, line)
    return faults, record or role.checked(value, file, line, answers=False)[1]


def _audit_preferences(path: Path, role: Role, form: str, file: FileAudit) -> list[_Entry]:
    """Report the faults of each line of a preference file. Several lines with the same prompt are normal."""
    entries: list[_Entry] = []
    for line, judgements, faults in preference_lines(path, role, form):
        file.faults += faults
        file.records += line.value is not None
        for judgement in judgements[:1]:
            record = judgement.answers[0]
            entries.append(
                _Entry(str(path), line.number, "prompt", role.question(record), key_of(role, record), "", [])
            )
    return entries


def _audit_text(path: Path, file: FileAudit) -> None:
    """Report the faults of each document of a plain text file, and repeated documents."""
    if is_prose(path):
        file.records = len(read_documents(path))
        return
    first: dict[str, int] = {}
    for record, found in text_rows(path):
        file.faults += found
        file.records += 1
        if record is None:
            continue
        earlier = first.setdefault(record[KEY].strip(), record.line)
        if earlier != record.line:
            what = f"the same document as line {earlier}"
            file.faults.append(Fault(str(path), record.line, KEY, "duplicate", what, level="warning"))


def key_of(role: Role, record: dict[str, Any]) -> str:
    """The input of a record without faults, normalized so that equal inputs are equal strings.

    Some roles compare inputs by their words alone. For the others a sign (3+2, 3-2), a capital letter, the system
    message or an earlier turn can make a different question, so the whole prompts are compared.
    """
    if by_words(role):
        return same(role.key(record))
    messages = role.messages(record)
    tools = tools_of(messages)
    return json.dumps([*messages, {"tools": tools}] if tools else messages, ensure_ascii=False)


def answer_of(role: Role, record: dict[str, Any]) -> str:
    """A record's answer, normalized so that equal answers are equal strings; "" if there is no answer.

    Roles that compare by words compare the words of the answer's texts (not IDs and the like); for the others the
    whole answer is compared.
    """
    if by_words(role):
        return " | ".join(same(text) for _, text in role.prose(record))
    value = role.answer_of(record)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def by_words(role: Role) -> bool:
    """Whether inputs with the same words are the same input, with one right answer."""
    return role.spec.same == "words"


def sentences(role: Role, record: dict[str, Any]) -> list[str]:
    """The texts in the lists of a record's answer."""
    return [text for listed, text in role.prose(record) if listed]


def _among(entries: list[_Entry], role: Role) -> list[Fault]:
    """Duplicates within one file."""
    name, level = role.input, "error" if by_words(role) else "warning"
    faults: list[Fault] = []
    first: dict[str, _Entry] = {}
    examples: dict[tuple[str, str], _Entry] = {}
    different: list[_Entry] = []
    for entry in entries:
        earlier = first.setdefault(entry.key, entry)
        twin = examples.setdefault((entry.key, entry.answer), entry)
        if earlier is entry:
            different.append(entry)
        elif twin is not entry:
            what = f"the same example as line {twin.line}"
            faults.append(Fault(entry.file, entry.line, entry.field, "duplicate", what, fixable=True))
        else:
            what = f"the same {name} as line {earlier.line}, with another answer"
            faults.append(Fault(entry.file, entry.line, entry.field, "duplicate-concept", what, level=level))
    nearest = {
        later: (before, overlap)
        for later, before, overlap in near_pairs([entry.asked for entry in different], signs=not by_words(role))
    }
    for later, (before, overlap) in nearest.items():
        what = f"{overlap:.0%} of its phrases stand in line {different[before].line}'s {name} too"
        entry = different[later]
        faults.append(Fault(entry.file, entry.line, entry.field, "near-duplicate", what, level="warning"))
    answer = role.spec.answer
    users: dict[str, _Entry] = {}
    for entry in different:
        for sentence in entry.sentences:
            key = same(sentence)
            earlier = users.setdefault(key, entry)
            if earlier is not entry and key:
                what = f"line {earlier.line} has the same text in its {answer}: {sentence[:60]!r}"
                faults.append(Fault(entry.file, entry.line, answer, "shared-sentence", what, level="warning"))
    return faults


def _across(files: list[list[_Entry]], role: Role) -> list[Fault]:
    """Inputs of one file that also appear in an earlier file, exactly or nearly."""
    name, signs = role.input, not by_words(role)
    faults: list[Fault] = []
    for index, own in enumerate(files):
        for other in files[:index]:
            known = {entry.key: entry for entry in other}
            fresh = []
            for entry in own:
                leaked = known.get(entry.key)
                if leaked is None:
                    fresh.append(entry)
                    continue
                what = f"the {name} stands in {leaked.file}:{leaked.line} too: a score on it means nothing"
                faults.append(Fault(entry.file, entry.line, entry.field, "leak", what))
            both = [*other, *fresh]
            pairs = near_pairs([entry.asked for entry in both], signs=signs)
            nearest = {later: (before, share) for later, before, share in pairs if before < len(other) <= later}
            for later, (before, share) in nearest.items():
                entry, source = both[later], both[before]
                what = f"{share:.0%} of its phrases stand in the {name} of {source.file}:{source.line} too"
                faults.append(Fault(entry.file, entry.line, entry.field, "near-leak", what, level="warning"))
    return faults
