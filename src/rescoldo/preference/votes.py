"""Votes on disk: append-only JSON Lines, so that nothing is lost and several processes may write."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import append_lines, refuse_link
from rescoldo.preference.ballots import Ballot
from rescoldo.preference.statistics import LOSS, TIE, WIN

LEFT, RIGHT, EQUAL = 1, 2, 0
MAX_NOTE = 4000  # characters
MAX_REVIEWER = 80
MAX_VOTES = 64 << 20  # bytes of a file

Key = tuple[str, str, int, int, str, str, str]


@dataclass(frozen=True)
class Vote:
    """A vote on a ballot.

    Attributes:
        pair: (a, b) as in the ballot.
        order: (left, right): the names in the order in which the answers were shown.
        vote: 1 left, 2 right, 0 equal; None: an earlier vote is withdrawn.
        time: UTC, ISO 8601, with microseconds.
        answers: name → hash of input and answer.
    """

    pair: tuple[str, str]
    example: int
    repeat: int
    order: tuple[str, str]
    vote: int | None
    reviewer: str
    note: str
    time: str
    answers: dict[str, str]

    @property
    def key(self) -> Key:
        """Of votes with the same key the latest counts: pair, input, both answers, reviewer."""
        one, other = sorted(self.pair)
        return one, other, self.example, self.repeat, self.answers[one], self.answers[other], self.reviewer

    def outcome(self, a: str) -> float | None:
        """1 if `a` is preferred, 0 if the other is, 1/2 if neither; None for a withdrawn vote."""
        if self.vote is None:
            return None
        if self.vote == EQUAL:
            return TIE
        return WIN if self.order[self.vote - 1] == a else LOSS


def ballot_key(ballot: Ballot, reviewer: str) -> Key:
    """The key of a reviewer's votes on a ballot."""
    one, other = sorted((ballot.a, ballot.b))
    answers = ballot.answers
    return one, other, ballot.example, ballot.repeat, answers[one], answers[other], reviewer


def votes_path(document: Path) -> Path:
    """The path of the votes on a comparison."""
    return document.with_name(document.name + ".votes.jsonl")


def own_votes(document: Path) -> VoteFile:
    """The file of votes on a comparison, for adding to it.

    Raises:
        RescoldoError: the file cannot be read, or is not a regular file.
    """
    path = votes_path(document)
    try:
        refuse_link(path)
    except OSError as error:
        raise RescoldoError(
            f"votes cannot be stored there: {error.strerror}", where=str(path), fix="move it away"
        ) from None
    return VoteFile(path)


class VoteFile:
    """Votes in a file. Several threads and several processes may use it at once.

    Attributes:
        votes: the latest vote of each key, in the order in which the keys first appeared, withdrawn ones included.
        damaged: lines that are not votes (for example a last line truncated by a crash); they are left in the file.

    Raises:
        RescoldoError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.votes: dict[Key, Vote] = {}
        self.latest: list[Key] = []  # keys in the order of their latest write
        self.damaged = 0
        self._read = 0  # bytes parsed so far, whole lines
        self._lock = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Read the votes that other processes have appended."""
        with self._lock:
            try:
                facts = os.stat(self.path)
                size = facts.st_size
                if not stat.S_ISREG(facts.st_mode) or size > MAX_VOTES:  # a device might have no end
                    what = "the file is too large to hold votes" if size > MAX_VOTES else "not a regular file"
                    raise RescoldoError(what, where=str(self.path), fix="move it away")
                with open(self.path, "rb") as file:
                    if size < self._read:  # it was replaced
                        self.votes, self.latest, self.damaged, self._read = {}, [], 0, 0
                    file.seek(self._read)
                    data = file.read(MAX_VOTES)
            except FileNotFoundError:
                return
            except OSError as error:
                raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(self.path)) from None
            whole, newline, _ = data.rpartition(b"\n")
            for line in whole.split(b"\n"):
                self._take(line)
            self._read += len(whole) + len(newline)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        vote = read_vote(line)
        if vote is None:
            self.damaged += 1
            return
        self.votes[vote.key] = vote
        if vote.key in self.latest:
            self.latest.remove(vote.key)
        self.latest.append(vote.key)

    def get(self, key: Key) -> Vote | None:
        """The vote that counts; None if there is none or it was withdrawn."""
        vote = self.votes.get(key)
        return vote if vote is not None and vote.vote is not None else None

    def append(self, *votes: Vote) -> None:
        """Write votes; they are on disk when this returns.

        Raises:
            RescoldoError: they cannot be written; in this case none of them counts.
        """
        texts = (json.dumps(_as_json(vote), ensure_ascii=False) for vote in votes)
        lines = b"".join(text.encode("utf-8", "replace") + b"\n" for text in texts)
        with self._lock:
            try:
                append_lines(self.path, lines)
            except OSError as error:
                raise RescoldoError(
                    f"the vote cannot be written: {error.strerror or error}",
                    where=str(self.path),
                    fix="make room or change the permissions; earlier votes are kept",
                    exit_code=EXIT_FAILURE,
                ) from None
            self.refresh()

    def merge(self, others: Iterable[Vote]) -> int:
        """Add votes from other files, unless there is the same or a later one. Returns the number of new votes."""
        self.refresh()
        fresh: dict[Key, Vote] = {}
        for vote in others:
            known = fresh.get(vote.key) or self.votes.get(vote.key)
            if known is None or known.time < vote.time:
                fresh[vote.key] = vote
        if fresh:
            self.append(*fresh.values())
        return len(fresh)


def is_reviewer(name: str) -> bool:
    """Whether a reviewer's name is valid: it is shown on terminals and in reports."""
    return bool(name.strip()) and len(name) <= MAX_REVIEWER and name.isprintable()


def _is_time(text: str) -> bool:
    """Whether a text is a time in the format of votes, in which later times are greater strings."""
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except (ValueError, OverflowError):
        return False


def _as_json(vote: Vote) -> dict[str, Any]:
    return {
        "pair": list(vote.pair),
        "example": vote.example,
        "repeat": vote.repeat,
        "order": list(vote.order),
        "vote": vote.vote,
        "reviewer": vote.reviewer,
        "note": vote.note,
        "time": vote.time,
        "answers": vote.answers,
    }


def read_vote(line: bytes) -> Vote | None:
    """The vote in a line; None if the line is damaged."""
    try:
        value: Any = json.loads(line)
        pair, order, answers = tuple(value["pair"]), tuple(value["order"]), value["answers"]
        vote = Vote(
            pair, value["example"], value["repeat"], order, value["vote"], value["reviewer"], value.get("note", ""),
            value["time"], answers,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    texts = [*pair, *order, vote.reviewer, vote.note, vote.time]
    whole = (
        len(pair) == 2
        and all(isinstance(text, str) for text in texts)
        and sorted(order) == sorted(pair)
        and pair[0] != pair[1]
        and isinstance(answers, dict)
        and all(isinstance(answers.get(name), str) for name in pair)
        and all(type(number) is int for number in (vote.example, vote.repeat))
        and (vote.vote is None or (type(vote.vote) is int and vote.vote in (LEFT, RIGHT, EQUAL)))
        and is_reviewer(vote.reviewer)
        and len(vote.note) <= MAX_NOTE
        and _is_time(vote.time)
    )
    return vote if whole else None
