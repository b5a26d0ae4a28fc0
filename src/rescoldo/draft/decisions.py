"""Decisions of people about drafts: an append-only log, and the dataset that results from it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rescoldo.data.fix import unwritable, write_bytes
from rescoldo.data.records import flag, read_lines
from rescoldo.draft.drafting import with_answer
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import append_lines, quote
from rescoldo.invocation import program
from rescoldo.role import Role
from rescoldo.role.fault import errors

ACCEPT, REJECT = "accept", "reject"
MAX_DECISIONS = 256 << 20  # bytes
MAX_REVIEWER = 80
_WORKING = ("checks", "doubts", "extract")  # provenance for the reviewer, not for the dataset


@dataclass(frozen=True)
class Decision:
    """A reviewer's decision about a draft.

    Attributes:
        draft: the draft's id.
        decision: ACCEPT, REJECT, or None if an earlier decision is withdrawn.
        input, answer: the edited texts; None where they were not edited.
        time: UTC, ISO 8601.
    """

    draft: str
    decision: str | None
    input: str | None
    answer: str | None
    reviewer: str
    time: str


@dataclass(frozen=True)
class Draft:
    """A draft in a file: `id` is a hash of the record, `input` and `answer` are texts to show to a person."""

    id: str
    record: dict[str, Any]
    input: str
    answer: str
    checks: list[str]
    doubts: list[str]
    extract: str
    place: str


class NotSoundError(ValueError):
    """An accepted draft is not a valid record; the message says why."""


def read_drafts(path: Path, role: Role) -> list[Draft]:
    """The drafts in a file, without repetitions.

    Raises:
        RescoldoError: a line is not a draft, or the file has no drafts.
    """
    found: dict[str, Draft] = {}
    for line in read_lines(path):
        faults = line.faults
        if line.value is None or faults:
            raise RescoldoError(faults[0].what, where=faults[0].where, fix="fix that line")
        record = line.value
        wrong = errors(role.check(record, str(path), line.number, answers=False))
        if wrong:
            raise RescoldoError(wrong[0].what, where=wrong[0].where, fix="is it another role's file (--role)?")
        origin = record.get("provenance")
        origin = origin if isinstance(origin, dict) else {}
        name = hashlib.sha256(json.dumps(record, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]
        place = ", ".join(str(origin[key]) for key in ("source", "place") if origin.get(key))
        found[name] = Draft(
            name, record, _question(role, record), _answer(role, record),
            _texts(origin.get("checks")), _texts(origin.get("doubts")), str(origin.get("extract") or ""), place,
        )  # fmt: skip
    if not found:
        raise RescoldoError("holds no drafts", where=str(path), fix=f"{program()} data draft writes them")
    return list(found.values())


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _question(role: Role, record: dict[str, Any]) -> str:
    if not role.spec.conversational:
        return role.key(record)
    return str(role.read(record, answers=False).get(role.input, ""))


def _answer(role: Role, record: dict[str, Any]) -> str:
    """The answer in the role's serialization; an answer that does not fit the role is returned as it is."""
    if role.spec.conversational:
        return str(role.read(record, answers=False).get(role.spec.answer) or "")
    value = record.get(role.spec.answer)
    if isinstance(value, str):
        return value
    try:
        return role.target(record)
    except (ValueError, TypeError, KeyError, RescoldoError):
        return json.dumps(value, ensure_ascii=False, indent=2)


def decisions_path(drafts: Path) -> Path:
    """The path of the decisions about a file of drafts."""
    return drafts.with_name(drafts.name + ".decisions.jsonl")


class Reviewing:
    """The drafts of a file, the decisions about them, and the dataset made of the accepted drafts.

    When `decide` returns, both files have the decision on disk. Threads may share an instance.

    Raises:
        RescoldoError: the decisions cannot be read, the output holds something else, or the reviewer's name is invalid.
    """

    def __init__(self, path: Path, role: Role, output: Path, reviewer: str) -> None:
        if not reviewer.strip() or len(reviewer) > MAX_REVIEWER or not reviewer.isprintable():
            what = f"invalid reviewer name {reviewer[:60]!r}: expected 1 to {MAX_REVIEWER} printable characters"
            raise RescoldoError(what, where="--reviewer")
        self.path, self.role, self.output, self.reviewer = path, role, output, reviewer
        self.drafts: Sequence[Draft] = read_drafts(path, role)
        self.kept = decisions_path(path)
        self._lock = threading.RLock()
        self._decisions: dict[str, Decision] = {}
        self._order: list[str] = []
        self.refresh()
        self._check_output()

    def refresh(self) -> None:
        """Read the decisions that other processes have written."""
        with self._lock:
            self._decisions, self._order = {}, []
            try:
                if self.kept.stat().st_size > MAX_DECISIONS:
                    raise RescoldoError("is too large to hold decisions", where=str(self.kept), fix="move it away")
                data = self.kept.read_bytes()
            except FileNotFoundError:
                return
            except OSError as error:
                raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(self.kept)) from None
            for line in data.split(b"\n"):
                decision = _read(line)
                if decision is not None:
                    self._decisions[decision.draft] = decision
                    self._order = [*(one for one in self._order if one != decision.draft), decision.draft]

    def decision(self, number: int) -> Decision | None:
        """The decision about a draft; None if there is none, or if it was withdrawn."""
        found = self._decisions.get(self.drafts[number].id)
        return found if found is not None and found.decision is not None else None

    def count(self, decision: str) -> int:
        """The number of drafts with this decision."""
        return sum((one := self.decision(n)) is not None and one.decision == decision for n in range(len(self.drafts)))

    @property
    def done(self) -> int:
        """The number of drafts with a decision."""
        return sum(self.decision(n) is not None for n in range(len(self.drafts)))

    def next_open(self, after: int = -1) -> int | None:
        """The index of the first open draft after `after`, else the first open one of all; None if none is open."""
        numbers = [*range(after + 1, len(self.drafts)), *range(min(after + 1, len(self.drafts)))]
        return next((number for number in numbers if self.decision(number) is None), None)

    def decide(self, number: int, decision: str | None, input_: str = "", answer: str = "") -> None:
        """Save a decision and rewrite the dataset.

        Args:
            input_, answer: the texts that the reviewer accepts.

        Raises:
            IndexError: there is no such draft.
            ValueError: there is no such decision.
            NotSoundError: the accepted record does not pass the role's check.
            RescoldoError: a file cannot be written.
        """
        if decision not in (ACCEPT, REJECT, None):
            raise ValueError(decision)
        if not 0 <= number < len(self.drafts):
            raise IndexError(number)
        draft = self.drafts[number]
        changed: tuple[str | None, str | None] = (None, None)
        if decision == ACCEPT:
            changed = (_other(draft.input, input_), _other(draft.answer, answer))
            self._record(draft, *changed)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        made = Decision(draft.id, decision, *changed, self.reviewer, time)
        line = json.dumps(asdict(made), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            try:
                append_lines(self.kept, line)
            except OSError as error:
                raise RescoldoError(
                    f"the decision cannot be written: {error.strerror or error}", where=str(self.kept),
                    fix="make room or change the permissions; earlier decisions are kept", exit_code=EXIT_FAILURE,
                ) from None  # fmt: skip
            self.refresh()
            self.write()

    def undo(self) -> int | None:
        """Withdraw the last decision. Returns its draft's index, None if there is no decision."""
        places = {draft.id: number for number, draft in enumerate(self.drafts)}
        with self._lock:
            self.refresh()
            standing = (one for one in reversed(self._order) if one in places and self._decisions[one].decision)
            last = next(standing, None)
            if last is None:
                return None
            self.decide(places[last], None)
            return places[last]

    def shown(self, number: int) -> tuple[str, str]:
        """Input and answer to show: the accepted texts if they were edited."""
        draft, decision = self.drafts[number], self.decision(number)
        if decision is None:
            return draft.input, draft.answer
        return decision.input or draft.input, decision.answer or draft.answer

    def write(self) -> None:
        """Write the accepted records to the dataset file.

        Raises:
            RescoldoError: it cannot be written.
        """
        lines = [json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in self.accepted()]
        try:
            write_bytes(self.output, b"".join(lines))
        except OSError as error:
            raise unwritable(self.output, error) from None

    def accepted(self) -> list[dict[str, Any]]:
        """The accepted records, each with the reviewer, the time, and whether it was edited."""
        found = []
        for number, draft in enumerate(self.drafts):
            decision = self.decision(number)
            if decision is None or decision.decision != ACCEPT:
                continue
            try:
                record = self._record(draft, decision.input, decision.answer)
            except NotSoundError as error:  # the role has changed since it was accepted
                raise RescoldoError(
                    f"was accepted, but the role now refuses it ({error})", where=f"{self.path}, draft {number + 1}",
                    fix=f"restore the role, or start another review: move {quote(self.kept)} away",
                ) from None  # fmt: skip
            origin = {k: v for k, v in (record.get("provenance") or {}).items() if k not in _WORKING}
            edited = decision.input is not None or decision.answer is not None
            reviewed = {"draft": draft.id, "reviewer": decision.reviewer, "reviewed": decision.time, "edited": edited}
            found.append({**record, "status": "accepted", "provenance": {**origin, **reviewed}})
        return found

    def _record(self, draft: Draft, input_: str | None, answer: str | None) -> dict[str, Any]:
        """The record with the reviewer's edits.

        Raises:
            NotSoundError: it does not pass the role's check.
        """
        record = {key: value for key, value in draft.record.items() if key != "status"}
        if input_ is not None:
            record = _with_input(self.role, record, input_)
        if answer is not None or (self.role.schema is not None and isinstance(record.get(self.role.spec.answer), str)):
            value, fault = self.role.parse(draft.answer if answer is None else answer)
            if fault:
                raise NotSoundError(str(fault))
            record = with_answer(self.role, record, value)
        faults = errors(self.role.check(record, "", 0))
        if faults:
            raise NotSoundError("; ".join(f"{one.field}: {one.what}" if one.field else one.what for one in faults[:3]))
        return record

    def _check_output(self) -> None:
        """Raise RescoldoError if the output holds records that do not come from these drafts."""
        if not self.output.exists():
            return
        ids = {draft.id for draft in self.drafts}
        fix = f"--output NEW_FILE; {program()} data review {quote(self.path)}{flag(self.role)}"
        for line in read_lines(self.output):
            origin = (line.value or {}).get("provenance")
            if not isinstance(origin, dict) or origin.get("draft") not in ids:
                what = f"holds a record that does not come from {self.path.name}, and would be overwritten"
                raise RescoldoError(what, where=f"{self.output}:{line.number}", fix=fix)


def _other(before: str, now: str) -> str | None:
    """`now` if it differs from `before`, else None; a browser turns every line end into a single character."""
    return None if now.replace("\r\n", "\n").strip() == before.replace("\r\n", "\n").strip() else now


def _with_input(role: Role, record: dict[str, Any], text: str) -> dict[str, Any]:
    """A copy of a record with another input."""
    if role.spec.conversational and isinstance(record.get("messages"), list):
        messages = [dict(one) for one in record["messages"]]
        asked = [one for one in messages if one.get("role") == "user"]
        asked[-1]["content"] = text
        return {**record, "messages": messages}
    return {**record, role.input: text}


def _read(line: bytes) -> Decision | None:
    """The decision in a line; None if the line is damaged."""
    try:
        made = Decision(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (made.draft, made.reviewer, made.time)
    whole = all(isinstance(one, str) for one in texts) and made.decision in (ACCEPT, REJECT, None)
    return made if whole and all(isinstance(one, str | None) for one in (made.input, made.answer)) else None
