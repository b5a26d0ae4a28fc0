"""The votes of people on a comparison, as its document has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rescoldo.preference.ballots import Ballot, ballots
from rescoldo.preference.statistics import krippendorff_alpha, summarise
from rescoldo.preference.votes import Vote, VoteFile, ballot_key, votes_beside


def counted(document: Mapping[str, Any], votes: Iterable[Vote], where: str = "") -> list[tuple[Ballot, Vote]]:
    """The votes that are about the document's own answers, each with its ballot; the withdrawn left out.

    Whichever way a vote names its pair, `a` is the model that comes later in the document, where the simplest is first.
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
    """The document's `people` part; None where no vote counts.

    Args:
        votes: the last of each key (VoteFile.votes).

    Returns:
        reviewers and votes (how many); pairs (see statistics.summarise, and `votes` of the pair); agreement {alpha
        (Krippendorff's, ordinal), items (answers that two or more have judged)}; not_counted (votes on answers that are
        not in the document, because they changed or the model is not there).
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
    """Put the votes that lie beside a comparison's file into its document; take those out that do not count any more.

    Args:
        path: the comparison's file, whether it is there yet or not.

    Raises:
        RescoldoError: the votes cannot be read.
    """
    document.pop("people", None)
    beside = votes_beside(path)
    found = people(document, VoteFile(beside).votes.values(), str(path)) if beside.exists() else None
    if found:
        document["people"] = found
