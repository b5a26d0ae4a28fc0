"""What the votes say so far, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rescoldo.preference.ballots import Ballots
from rescoldo.units import count


def summary_lines(people: Mapping[str, Any] | None, ballots: Ballots | None = None) -> Iterator[str]:
    """The result of a vote.

    Args:
        people: as rescoldo.preference.people makes it; None where no vote counts.
        ballots: what was put to the vote, to say what could not be.
    """
    if people is None:
        yield "No votes yet"
    else:
        yield f"{count(people['votes'], 'vote')} by {count(people['reviewers'], 'reviewer')}"
        for pair in people["pairs"]:
            yield from _pair(pair)
        alpha, items = people["agreement"]["alpha"], people["agreement"]["items"]
        if items:
            known = "not defined: all votes are alike" if alpha is None else f"{alpha:.2f}"
            yield f"  agreement of the reviewers (Krippendorff's alpha) on {count(items, 'answer')}: {known}"
        if people.get("not_counted"):
            yield f"  {count(people['not_counted'], 'vote')} on answers that are not in the comparison any more"
    for (a, b), number in ballots.identical.items() if ballots else ():
        if number:
            yield f"  {a} and {b} gave {count(number, 'identical answer')}: nothing to choose there"
    for (a, b), number in ballots.failed.items() if ballots else ():
        if number:
            yield f"  {count(number, 'input')} left out: {a} or {b} failed to answer"


def _pair(pair: Mapping[str, Any]) -> Iterator[str]:
    low, high = pair["interval"]
    yield (
        f"{pair['a']} against {pair['b']}: preferred on {pair['wins']}, equal on {pair['ties']}, worse on "
        f"{pair['losses']} inputs; win rate {pair['win_rate']:.0%} (95 % interval {low:.0%} to {high:.0%})"
    )
    if pair["settled"]:
        yield f"  settled: {pair['a'] if pair['win_rate'] > 0.5 else pair['b']} is preferred"
    elif pair["more_votes"] is None:
        yield "  not settled: so close that no practicable number of votes would settle it"
    else:
        yield f"  not settled: votes on about {count(pair['more_votes'], 'more input')} would settle it"
