"""One reviewer's way through the ballots, whatever shows them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rescoldo.errors import RescoldoError
from rescoldo.preference.ballots import Ballot
from rescoldo.preference.votes import (
    EQUAL,
    LEFT,
    MAX_NOTE,
    MAX_REVIEWER,
    RIGHT,
    Vote,
    VoteFile,
    ballot_key,
    is_reviewer,
)


@dataclass(frozen=True)
class Shown:
    """A ballot as a reviewer sees it: without names.

    Attributes:
        number: its place in the reviewer's order, from 0.
        vote: what the reviewer has said so far: 1, 2, 0, or None.
    """

    number: int
    concept: str
    left: str
    right: str
    vote: int | None
    note: str


class Session:
    """The ballots in the order of one reviewer, and the votes on them. Threads may share it.

    Args:
        reviewer: what the votes are signed with; order and sides depend on it.
        seed: of order and sides.
    """

    def __init__(self, ballots: Sequence[Ballot], votes: VoteFile, reviewer: str, seed: int) -> None:
        if not is_reviewer(reviewer):
            raise RescoldoError(
                f"{reviewer[:60]!r} is no name: expected 1 to {MAX_REVIEWER} printable characters",
                where="--reviewer",
            )
        self.ballots = sorted(ballots, key=lambda ballot: ballot.place(seed, reviewer))
        self.votes, self.reviewer, self.seed = votes, reviewer, seed
        self._numbers = {ballot_key(ballot, reviewer): number for number, ballot in enumerate(self.ballots)}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ballots)

    def show(self, number: int) -> Shown:
        """The ballot at a place. Raises IndexError where there is none."""
        if not 0 <= number < len(self.ballots):
            raise IndexError(number)
        ballot = self.ballots[number]
        left, right = ballot.order(self.seed, self.reviewer)
        kept = self._vote(number)
        choice = None if kept is None else self._as_shown(kept, left)
        note = kept.note if kept else ""
        return Shown(number, ballot.concept, ballot.texts[left], ballot.texts[right], choice, note)

    def cast(self, number: int, vote: int | None, note: str = "") -> int | None:
        """Keep a vote (1 left, 2 right, 0 equal; None takes an earlier one back). The same vote again changes nothing.

        Returns:
            What the reviewer had said before, in the same terms; None if nothing.

        Raises:
            IndexError: there is no such place. ValueError: there is no such vote, or the note is too long.
            RescoldoError: it cannot be written.
        """
        if vote not in (LEFT, RIGHT, EQUAL, None) or len(note) > MAX_NOTE:
            raise ValueError("no vote")
        if not 0 <= number < len(self.ballots):
            raise IndexError(number)
        with self._lock:
            self.votes.refresh()
            ballot = self.ballots[number]
            order = ballot.order(self.seed, self.reviewer)
            kept = self._vote(number)
            before = None if kept is None else self._as_shown(kept, order[0])
            note = note.strip() if vote is not None else ""
            if before == vote and (kept is None or kept.note == note):
                return before
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            self.votes.append(
                Vote(
                    (ballot.a, ballot.b),
                    ballot.example,
                    ballot.repeat,
                    order,
                    vote,
                    self.reviewer,
                    note,
                    time,
                    ballot.answers,
                )
            )
            return before

    def undo(self) -> int | None:
        """Take back the vote that was given last. Returns its place, None where there is none."""
        with self._lock:
            self.votes.refresh()
            number = next(
                (
                    self._numbers[key]
                    for key in reversed(self.votes.latest)
                    if key in self._numbers and self.votes.get(key) is not None
                ),
                None,
            )
        if number is not None:
            self.cast(number, None)
        return number

    def next_open(self, after: int = -1) -> int | None:
        """The first place behind `after` without a vote, else the first of all; None where all have one."""
        self.votes.refresh()
        numbers = [*range(after + 1, len(self)), *range(min(after + 1, len(self)))]
        return next((number for number in numbers if self._vote(number) is None), None)

    @property
    def done(self) -> int:
        """How many ballots have a vote of this reviewer."""
        return sum(self._vote(number) is not None for number in range(len(self)))

    def _vote(self, number: int) -> Vote | None:
        return self.votes.get(ballot_key(self.ballots[number], self.reviewer))

    @staticmethod
    def _as_shown(kept: Vote, left: str) -> int:
        """A kept vote in the order of now: it may have been given with another seed."""
        assert kept.vote is not None
        if kept.vote == EQUAL:
            return EQUAL
        return LEFT if kept.order[kept.vote - 1] == left else RIGHT
