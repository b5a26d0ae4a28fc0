"""One reviewer's session of ballots, independent of the user interface."""

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
    """A ballot as a reviewer sees it: without the models' names.

    Attributes:
        number: its index in the reviewer's order, from 0.
        vote: the reviewer's vote so far: 1, 2, 0, or None.
    """

    number: int
    concept: str
    left: str
    right: str
    vote: int | None
    note: str


class Session:
    """The ballots in one reviewer's order, and the votes on them. Threads may share an instance.

    Args:
        reviewer: the name stored with the votes; order and sides depend on it.
        seed: for order and sides.
    """

    def __init__(self, ballots: Sequence[Ballot], votes: VoteFile, reviewer: str, seed: int) -> None:
        if not is_reviewer(reviewer):
            raise RescoldoError(
                f"invalid reviewer name {reviewer[:60]!r}: expected 1 to {MAX_REVIEWER} printable characters",
                where="--reviewer",
            )
        self.ballots = sorted(ballots, key=lambda ballot: ballot.place(seed, reviewer))
        self.votes, self.reviewer, self.seed = votes, reviewer, seed
        self._numbers = {ballot_key(ballot, reviewer): number for number, ballot in enumerate(self.ballots)}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ballots)

    def show(self, number: int) -> Shown:
        """The ballot at an index; raises IndexError if there is none."""
        if not 0 <= number < len(self.ballots):
            raise IndexError(number)
        ballot = self.ballots[number]
        left, right = ballot.order(self.seed, self.reviewer)
        kept = self._vote(number)
        choice = None if kept is None else self._as_shown(kept, left)
        note = kept.note if kept else ""
        return Shown(number, ballot.concept, ballot.texts[left], ballot.texts[right], choice, note)

    def cast(self, number: int, vote: int | None, note: str = "") -> int | None:
        """Save a vote (1 left, 2 right, 0 equal; None withdraws an earlier one). Repeating a vote changes nothing.

        Returns:
            The reviewer's previous vote, in the same terms; None if there was none.

        Raises:
            IndexError: there is no such ballot.
            ValueError: there is no such vote, or the note is too long.
            RescoldoError: the vote cannot be written.
        """
        if vote not in (LEFT, RIGHT, EQUAL, None) or len(note) > MAX_NOTE:
            raise ValueError("invalid vote")
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
        """Withdraw the latest vote. Returns its ballot's index, None if there is no vote."""
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
        """The index of the first ballot after `after` without a vote, else the first of all; None if all have one."""
        self.votes.refresh()
        numbers = [*range(after + 1, len(self)), *range(min(after + 1, len(self)))]
        return next((number for number in numbers if self._vote(number) is None), None)

    @property
    def done(self) -> int:
        """The number of ballots with a vote of this reviewer."""
        return sum(self._vote(number) is not None for number in range(len(self)))

    def _vote(self, number: int) -> Vote | None:
        return self.votes.get(ballot_key(self.ballots[number], self.reviewer))

    @staticmethod
    def _as_shown(kept: Vote, left: str) -> int:
        """A saved vote in the current order of the sides: it may have been given with another seed."""
        assert kept.vote is not None
        if kept.vote == EQUAL:
            return EQUAL
        return LEFT if kept.order[kept.vote - 1] == left else RIGHT
