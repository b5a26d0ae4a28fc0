"""People's votes in the document of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rescoldo.preference.ballots import Ballot, ballots
from rescoldo.preference.statistics import krippendorff_alpha, summarise
from rescoldo.preference.votes import Vote, VoteFile, ballot_key, votes_path


def counted(document: Mapping[str, Any], votes: Iterable[Vote], where: str = "") -> list[tuple[Ballot, Vote]]:
    """The votes about the document's own answers, each with its ballot; withdrawn votes are left out.

    However a vote orders its pair, `a` is the model that comes later in the document, which begins with the simplest.
    """
    models = document.get("models")
    known = models if isinstance(models, dict) else {}
    kept = [vote for vote in votes if vote.vote is not None and all(name in known for name in vote.pair)]
    order = list(known)
    pairs = dict.fromkeys((max(vote.pair, key=order.index), min(vote.pair, key=order.index)) for vote in kept)
    if not pairs:
        return []
    there = {ballot_key(ballot, ""): ballot for ballot in ballots(document, list(pairs), where).items}
    found = []
    for vote in kept:
        ballot = there.get((*vote.key[:-1], ""))
        if ballot is not None:
            found.append((ballot, vote))
    return found


def people(document: Mapping[str, Any], votes: Iterable[Vote], where: str = "") -> dict[str, Any] | None:
    """The document's `people` part; None if no vote counts.

    Args:
        votes: the latest vote of each key (VoteFile.votes).

    Returns:
        reviewers and votes (their numbers); pairs (see statistics.summarise, and `votes` of the pair); agreement {alpha
        (Krippendorff's, ordinal), items (answers judged by two or more)}; not_counted (votes on answers that are not in
        the document, because they have changed or the model is missing).
    """
    every = [vote for vote in votes if vote.vote is not None]
    found = counted(document, every, where)
    if not found:
        return None
    outcomes: dict[tuple[str, str], dict[int, list[float]]] = {}
    units: dict[tuple[str, str, int, int], list[float]] = {}
    for ballot, vote in found:
        outcome = vote.outcome(ballot.a)
        assert outcome is not None
        pair = (ballot.a, ballot.b)
        outcomes.setdefault(pair, {}).setdefault(ballot.example, []).append(outcome)
        units.setdefault((*pair, ballot.example, ballot.repeat), []).append(outcome)
    return {
        "reviewers": len({vote.reviewer for _, vote in found}),
        "votes": len(found),
        "pairs": [
            {**summarise(*pair, inputs), "votes": sum(map(len, inputs.values()))} for pair, inputs in outcomes.items()
        ],
        "agreement": {
            "alpha": krippendorff_alpha(units.values()),
            "items": sum(len(values) > 1 for values in units.values()),
        },
        "not_counted": len(every) - len(found),
    }


def take_votes_in(document: dict[str, Any], path: Path) -> None:
    """Add the votes stored next to a comparison's file to its document, and remove those that no longer count.

    Args:
        path: the comparison's file, which need not exist yet.

    Raises:
        RescoldoError: the votes cannot be read.
    """
    document.pop("people", None)
    votes = votes_path(path)
    found = people(document, VoteFile(votes).votes.values(), str(path)) if votes.exists() else None
    if found:
        document["people"] = found
