"""Ballots: two models' answers to the same input, in an order drawn by the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rescoldo.errors import RescoldoError


@dataclass(frozen=True)
class Ballot:
    """Two answers to one input.

    Attributes:
        a, b: the models' names; a win is a's.
        example, repeat: the input and the number of its answer, as in the document's predictions.
        concept: the input, for display.
        texts: name → answer.
    """

    a: str
    b: str
    example: int
    repeat: int
    concept: str
    texts: Mapping[str, str]

    @property
    def answers(self) -> dict[str, str]:
        """Name → hash of input and answer: a vote counts only for these."""
        return {name: answer_hash(self.concept, self.texts[name]) for name in (self.a, self.b)}

    def order(self, seed: int, who: str) -> tuple[str, str]:
        """(left, right): the names in the order in which `who` sees the answers, drawn by the seed."""
        first = _draw("order", seed, who, self)[0] % 2 == 0
        one, other = sorted((self.a, self.b))
        return (one, other) if first else (other, one)

    def place(self, seed: int, who: str) -> bytes:
        """The sort key of the ballots for `who`."""
        return _draw("place", seed, who, self)


@dataclass(frozen=True)
class Ballots:
    """The ballots of some pairs.

    Attributes:
        identical: (a, b) → number of inputs with two identical answers, which need no vote.
        failed: (a, b) → number of inputs without an answer of one model because its server failed.
    """

    items: tuple[Ballot, ...]
    identical: Mapping[tuple[str, str], int]
    failed: Mapping[tuple[str, str], int]


def answer_hash(concept: str, text: str) -> str:
    """SHA-256 (hex) of an input and the answer to it."""
    return hashlib.sha256(json.dumps([concept, text]).encode()).hexdigest()


def _draw(what: str, seed: int, who: str, ballot: Ballot) -> bytes:
    pair = sorted((ballot.a, ballot.b))
    words = json.dumps([what, seed, who, pair, ballot.example, ballot.repeat, ballot.concept])
    return hashlib.sha256(words.encode()).digest()


def ballots(document: Mapping[str, Any], pairs: Sequence[tuple[str, str]], where: str = "") -> Ballots:
    """The ballots of a comparison document.

    Args:
        pairs: (a, b) of models' names.
        where: the file, for messages.

    Raises:
        RescoldoError: there is no such model, or a prediction is malformed.
    """
    models = document.get("models")
    if not isinstance(models, dict) or len(models) < 2:
        raise RescoldoError("holds no two models to choose between", where=where, fix="name a comparison's --output")
    items: list[Ballot] = []
    identical = dict.fromkeys(pairs, 0)
    failed = dict.fromkeys(pairs, 0)
    for pair in pairs:
        first, second = (_rows(models, name, where) for name in pair)
        for key, (concept, text, error) in first.items():
            if key not in second:
                continue
            concept_there, other, error_there = second[key]
            if concept_there != concept:
                raise RescoldoError(f"{pair[0]} and {pair[1]} answer different inputs in it", where=where)
            if error or error_there:
                failed[pair] += 1
            elif text == other:
                identical[pair] += 1
            else:
                items.append(Ballot(*pair, *key, concept, {pair[0]: text, pair[1]: other}))
    return Ballots(tuple(items), identical, failed)


def _rows(models: Mapping[str, Any], name: str, where: str) -> dict[tuple[int, int], tuple[str, str, bool]]:
    """(example, repeat) → concept, text, failed."""
    if name not in models:
        raise RescoldoError(f"there is no model {name[:60]!r} in it", where=where, fix=f"it has {', '.join(models)}")
    rows = models[name].get("predictions") if isinstance(models[name], dict) else None
    found: dict[tuple[int, int], tuple[str, str, bool]] = {}
    for place, row in enumerate(rows if isinstance(rows, list) else ()):
        try:
            example, repeat = row.get("example", place), row.get("repeat", 0)
            concept, text = row["concept"], row["text"]
        except (AttributeError, KeyError):
            example = None
        whole = isinstance(example, int) and isinstance(repeat, int)
        if not whole or not isinstance(concept, str) or not isinstance(text, str):
            raise RescoldoError(
                "is malformed: expected example, repeat, concept and text",
                where=f"{where}, models.{name}.predictions[{place}]",
            )
        found[example, repeat] = concept, text, bool(row.get("error"))
    return found


def default_pairs(document: Mapping[str, Any], where: str = "") -> list[tuple[str, str]]:
    """The pairs that the comparison's verdict depends on.

    This is its winner against the baseline; if the baseline has won, the fine-tuned model, or else the best of the
    others, against it. If the decision names models whose content the fine-tuned one has to surpass, it is the
    fine-tuned model against each of them.

    Raises:
        RescoldoError: the document is not a comparison of two models.
    """
    comparison = document.get("comparison")
    try:
        models = list(document["models"])
        ranking = comparison["ranking"]  # type: ignore[index]
        names = [str(row["model"]) for row in ranking]
        # the baseline is the document's first model; others that do not differ from it significantly come later
        level = [str(row["model"]) for row in ranking if row["difference_to_baseline"] == 0]
        decision = comparison.get("decision") or {}  # type: ignore[union-attr]
        content = decision.get("content") or {}
        rivals = [(str(decision["finetuned"]), str(name)) for name in content.get("rivals") or ()]
        winner = str(decision.get("winner") or names[0])
    except (IndexError, KeyError, TypeError, AttributeError):
        names = []
    if len(names) < 2:
        raise RescoldoError("is not a comparison of two models", where=where, fix="name the --output of a comparison")
    if rivals:
        return rivals
    baseline = next((name for name in models if name in level), models[0])
    others = [name for name in names if name != baseline]
    if winner in others:
        return [(winner, baseline)]
    return [("finetuned" if "finetuned" in others else others[0], baseline)]
