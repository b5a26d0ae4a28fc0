"""What was preferred as data to train on: a prompt, the chosen answer and the rejected one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rescoldo.data import read_records
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import sha256, write_text
from rescoldo.preference.ballots import Ballot
from rescoldo.preference.people import counted
from rescoldo.preference.statistics import TIE
from rescoldo.preference.votes import Vote
from rescoldo.role import Role


def preference_pairs(
    document: Mapping[str, Any], votes: Iterable[Vote], role: Role, where: str = ""
) -> list[dict[str, Any]]:
    """Preference pairs in the conversational format of TRL's preference data sets.

    An answer is chosen where the mean of the votes prefers it; where it does not, there is no pair.

    Args:
        role: makes the prompt's messages from the record.
        where: the comparison's file, for messages.

    Returns:
        {"prompt": [messages], "chosen": [message], "rejected": [message]} each.

    Raises:
        RescoldoError: the prompt cannot be made: it uses fields of the data set, which is not there any more.
    """
    outcomes: dict[tuple[str, str, int, int], list[float]] = {}
    there: dict[tuple[str, str, int, int], Ballot] = {}
    for ballot, vote in counted(document, votes, where):
        key = (ballot.a, ballot.b, ballot.example, ballot.repeat)
        there[key] = ballot
        outcomes.setdefault(key, []).append(vote.outcome(ballot.a) or 0.0)
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


def _records(document: Mapping[str, Any], role: Role) -> dict[int, dict[str, Any]]:
    """Example → its record, where the data set is still the one that was compared on."""
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
