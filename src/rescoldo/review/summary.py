"""The current result of the votes, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rescoldo.evaluation.language import language
from rescoldo.preference.ballots import Ballots
from rescoldo.review.wording import SUMMARY


class Words:
    """The summary's texts in one language."""

    def __init__(self, lang: str) -> None:
        self._texts, self.say = SUMMARY[lang], language(lang)

    def __call__(self, name: str, **values: str) -> str:
        return self._texts[name].format(**values)

    def count(self, number: int, noun: str) -> str:
        one, many = self._texts[noun].split("|")
        return f"{self.say.number(number, ',d')} {one if number == 1 else many}"


def summary_lines(people: Mapping[str, Any] | None, ballots: Ballots | None = None, lang: str = "en") -> Iterator[str]:
    """The result of the votes, line by line.

    Args:
        people: from rescoldo.preference.people; None if no vote counts.
        ballots: the ballots, to report inputs that could not be compared.
        lang: en or es.
    """
    words = Words(lang)
    if people is None:
        yield words("no_votes")
    else:
        voted, reviewers = words.count(people["votes"], "vote"), words.count(people["reviewers"], "reviewer")
        yield words("by", votes=voted, reviewers=reviewers)
        for pair in people["pairs"]:
            yield from _pair(pair, words)
        alpha, items = people["agreement"]["alpha"], people["agreement"]["items"]
        if items:
            known = words("undefined") if alpha is None else words.say.number(alpha, ".2f")
            yield "  " + words("agreement", answers=words.count(items, "answer"), alpha=known)
        if people.get("not_counted"):
            yield "  " + words("not_counted", votes=words.count(people["not_counted"], "vote"))
    for (a, b), number in ballots.identical.items() if ballots else ():
        if number:
            yield "  " + words("identical", a=a, b=b, answers=words.count(number, "identical_answer"))
    for (a, b), number in ballots.failed.items() if ballots else ():
        if number:
            yield "  " + words("failed", inputs=words.count(number, "input"), a=a, b=b)


def _pair(pair: Mapping[str, Any], words: Words) -> Iterator[str]:
    low, high = pair["interval"]
    say = words.say
    yield words(
        "pair", a=pair["a"], b=pair["b"], wins=say.number(pair["wins"]), ties=say.number(pair["ties"]),
        losses=say.number(pair["losses"]), rate=say.percent(pair["win_rate"]), low=say.percent(low),
        high=say.percent(high),
    )  # fmt: skip
    if pair["settled"]:
        yield "  " + words("settled", winner=pair["a"] if pair["win_rate"] > 0.5 else pair["b"])
    elif pair["more_votes"] is None:
        yield "  " + words("too_close")
    else:
        yield "  " + words("open", inputs=words.count(pair["more_votes"], "more_input"))
