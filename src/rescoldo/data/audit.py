"""What is wrong with a dataset: each record by itself, the records among each other, training against validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rescoldo.data.check import Fault, as_list, check_record
from rescoldo.data.records import read_lines
from rescoldo.data.similar import near_pairs, same, words
from rescoldo.role.ba import LISTS


@dataclass
class FileAudit:
    """One file's result: how many lines hold a record, and what is wrong."""

    file: str
    records: int
    faults: list[Fault] = field(default_factory=list)


@dataclass
class Audit:
    """All files' results; `across` holds what is wrong between files (training concepts in the validation file)."""

    files: list[FileAudit]
    across: list[Fault] = field(default_factory=list)

    @property
    def faults(self) -> list[Fault]:
        """Everything found."""
        return [fault for file in self.files for fault in file.faults] + self.across

    @property
    def ok(self) -> bool:
        """No errors; warnings may be there."""
        return not any(fault.level == "error" for fault in self.faults)

    def as_json(self) -> dict[str, Any]:
        """What `rescoldo data audit --json` prints."""
        return {
            "ok": self.ok,
            "files": [
                {
                    "file": file.file,
                    "records": file.records,
                    "errors": sum(fault.level == "error" for fault in file.faults),
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
    record: dict[str, Any]
    concept: str


def audit(paths: Sequence[Path]) -> Audit:
    """Check dataset files; with several, also that no concept stands in two of them.

    Raises:
        RescoldoError: a file cannot be read at all.
    """
    result = Audit([])
    entries: list[list[_Entry]] = []
    for path in paths:
        file = FileAudit(str(path), 0)
        own: list[_Entry] = []
        for line in read_lines(path):
            file.faults += line.faults
            if line.value is None:
                continue
            file.records += 1
            file.faults += check_record(line.value, str(path), line.number)
            concept = line.value.get("concept")
            if isinstance(concept, str) and words(concept):
                own.append(_Entry(str(path), line.number, line.value, concept))
        if not file.records and not file.faults:
            file.faults.append(Fault(str(path), 1, "", "no-records", "the file holds no records"))
        file.faults += _among(own)
        file.faults.sort(key=lambda fault: fault.line)
        result.files.append(file)
        entries.append(own)
    result.across = _across(entries)
    return result


def answer_of(record: dict[str, Any]) -> str:
    """A record's answer in a form in which two equal answers are equal text (IDs and priorities do not count)."""
    requirements = record.get("requirements")
    if not isinstance(requirements, dict):
        return ""
    parts = [str(requirements.get("title")), str(requirements.get("description"))]
    return " | ".join(same(part) for part in [*parts, *sentences(record)])


def sentences(record: dict[str, Any]) -> list[str]:
    """The descriptions of all its requirements and constraints."""
    requirements = record.get("requirements")
    lists = [as_list(requirements.get(name)) or [] for name in LISTS] if isinstance(requirements, dict) else []
    items = [item for items in lists for item in items if isinstance(item, dict)]
    return [item["description"] for item in items if isinstance(item.get("description"), str)]


def _among(entries: list[_Entry]) -> list[Fault]:
    """Duplicates inside one file."""
    faults: list[Fault] = []
    first: dict[str, _Entry] = {}
    different: list[_Entry] = []
    for entry in entries:
        earlier = first.setdefault(same(entry.concept), entry)
        if earlier is entry:
            different.append(entry)
        elif answer_of(earlier.record) == answer_of(entry.record):
            what = f"the same example as line {earlier.line}"
            faults.append(Fault(entry.file, entry.line, "concept", "duplicate", what, fixable=True))
        else:
            what = f"the same concept as line {earlier.line}, with another answer"
            faults.append(Fault(entry.file, entry.line, "concept", "duplicate-concept", what))
    nearest = {
        later: (before, overlap) for later, before, overlap in near_pairs([entry.concept for entry in different])
    }
    for later, (before, overlap) in nearest.items():
        what = f"{overlap:.0%} of its phrases stand in line {different[before].line}'s concept too"
        entry = different[later]
        faults.append(Fault(entry.file, entry.line, "concept", "near-duplicate", what, level="warning"))
    users: dict[str, _Entry] = {}
    for entry in different:
        for sentence in sentences(entry.record):
            key = same(sentence)
            earlier = users.setdefault(key, entry)
            if earlier is not entry and key:
                what = f"line {earlier.line} has the same requirement: {sentence[:60]!r}"
                faults.append(Fault(entry.file, entry.line, "requirements", "shared-sentence", what, level="warning"))
    return faults


def _across(files: list[list[_Entry]]) -> list[Fault]:
    """Concepts of one file that stand in an earlier one, or are near to one there."""
    faults: list[Fault] = []
    for index, own in enumerate(files):
        for other in files[:index]:
            known = {same(entry.concept): entry for entry in other}
            fresh = []
            for entry in own:
                leaked = known.get(same(entry.concept))
                if leaked is None:
                    fresh.append(entry)
                    continue
                what = f"the concept stands in {leaked.file}:{leaked.line} too: a score on it means nothing"
                faults.append(Fault(entry.file, entry.line, "concept", "leak", what))
            both = [*other, *fresh]
            pairs = near_pairs([entry.concept for entry in both])
            nearest = {later: (before, share) for later, before, share in pairs if before < len(other) <= later}
            for later, (before, share) in nearest.items():
                entry, source = both[later], both[before]
                what = f"{share:.0%} of its phrases stand in the concept of {source.file}:{source.line} too"
                faults.append(Fault(entry.file, entry.line, "concept", "near-leak", what, level="warning"))
    return faults
