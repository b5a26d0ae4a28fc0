"""Votes as preference data for training: a prompt, the chosen answer and the rejected one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rescoldo.data import read_records
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import sha256, write_text
from rescoldo.preference.ballots import Ballot, ballots
from rescoldo.preference.people import counted
from rescoldo.preference.statistics import LOSS, TIE, WIN
from rescoldo.preference.votes import Vote
from rescoldo.role import Role

Key = tuple[str, str, int, int]


def preference_pairs(
    document: Mapping[str, Any], votes: Iterable[Vote], role: Role, where: str = "", *, judged: bool = False
) -> list[dict[str, Any]]:
    """Preference pairs in the conversational format of TRL's preference datasets.

    An answer is chosen if the mean of the votes prefers it; with a tie there is no pair.

    Args:
        role: makes the prompt's messages from the record.
        where: the comparison's file, for messages.
        judged: where no person has voted, also use the preferences of judges that have passed their exam.

    Returns:
        A list of {"prompt": [messages], "chosen": [message], "rejected": [message]}.

    Raises:
        RescoldoError: the prompt uses fields of the dataset, which is missing or has changed.
    """
    outcomes: dict[Key, list[float]] = {}
    there: dict[Key, Ballot] = {}
    for ballot, vote in counted(document, votes, where):
        key = (ballot.a, ballot.b, ballot.example, ballot.repeat)
        there[key] = ballot
        outcomes.setdefault(key, []).append(vote.outcome(ballot.a) or 0.0)
    if judged:
        people = {(frozenset(key[:2]), *key[2:]) for key in there}
        for ballot, outcome in _judgements(document, where):
            key = (ballot.a, ballot.b, ballot.example, ballot.repeat)
            if (frozenset(key[:2]), *key[2:]) not in people:
                there[key] = ballot
                outcomes.setdefault(key, []).append(outcome)
    records = _records(document, role)
    pairs = []
    for key, ballot in sorted(there.items()):
        mean = statistics.fmean(outcomes[key])
        if mean == TIE:
            continue
        chosen, rejected = (ballot.a, ballot.b) if mean > TIE else (ballot.b, ballot.a)
        record = records.get(ballot.example)
        if record is None or role.key(record) != ballot.concept:
            record = {role.input: ballot.concept}
        pairs.append(
            {
                "prompt": role.messages(record),
                "chosen": [{"role": "assistant", "content": ballot.texts[chosen]}],
                "rejected": [{"role": "assistant", "content": ballot.texts[rejected]}],
            }
        )
    return pairs


def _judgements(document: Mapping[str, Any], where: str) -> list[tuple[Ballot, float]]:
    """The preferences of judges that have passed their exam.

    Raises:
        RescoldoError: the document's judges are malformed.
    """
    found = []
    try:
        for judge in document.get("judges") or ():
            for pair in judge["pairs"] if judge["exam"]["passed"] is True else ():
                there = {(b.example, b.repeat): b for b in ballots(document, [(pair["a"], pair["b"])], where).items}
                for example, repeat, outcome in pair["outcomes"]:
                    if (example, repeat) in there and outcome in (WIN, TIE, LOSS):
                        found.append((there[example, repeat], float(outcome)))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RescoldoError("its judges are malformed", where=where, fix="compare again") from None
    return found


def _records(document: Mapping[str, Any], role: Role) -> dict[int, dict[str, Any]]:
    """Example → its record, if the dataset file is still the one of the comparison."""
    facts = document.get("metadata")
    path = Path(str(facts.get("dataset") or "")) if isinstance(facts, dict) else Path()
    try:
        if not path.is_file() or sha256(path) != facts.get("dataset_sha256"):  # type: ignore[union-attr]
            return {}
        return dict(enumerate(read_records(path, role, answers=False)))
    except (OSError, RescoldoError):
        return {}


def write_pairs(pairs: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write preference pairs as JSON Lines.

    Raises:
        RescoldoError: the file cannot be written.
    """
    try:
        write_text(path, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    except OSError as error:
        raise RescoldoError(
            f"cannot be written: {error.strerror or error}", where=str(path), exit_code=EXIT_FAILURE
        ) from None
