"""What can be measured of an answer's content without understanding it. `content` says which values are normal.

None of these is good or bad by itself: a requirement may well name a standard that the concept does not. What counts is
whether an answer differs from the answers that the dataset itself gives.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rescoldo.evaluation.diagnostics import MAX_TEXT, TrainingAnswers, answer_words, input_words_used
from rescoldo.role import Role
from rescoldo.words import words

NEAR = 0.7  # Dice coefficient of two items' word bigrams, from which on one repeats the other
MAX_ITEMS = 400  # of an answer that are compared with each other
MAX_HOLDERS = 50  # items looked at that share a bigram: a phrase in more of them tells nothing
N = 3  # of the n-grams that are counted
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")
_FIGURE = re.compile(r"\d+(?:[.,:]\d+)*")
_WORD = re.compile(r"[^\W_][\w'’&+/-]*")
_HEADING_SHARE = 0.6  # of a text's longer words that begin with a capital, from which on capitals mark no names


@dataclass(frozen=True)
class Measure:
    """One thing that is measured of an answer.

    Attributes:
        low, high: whether a value below (above) what is normal is a bad sign.
        share: a value between 0 and 1, else a number from 0 on.
    """

    low: bool
    high: bool
    share: bool = False


MEASURES = {
    "repeated_items": Measure(low=False, high=True, share=True),
    "shared_items": Measure(low=False, high=True, share=True),
    "distinct_trigrams": Measure(low=True, high=False, share=True),
    "known_pairs": Measure(low=True, high=False, share=True),
    "input_words_used": Measure(low=True, high=False, share=True),
    "input_words_in_items": Measure(low=True, high=False, share=True),
    "new_figures": Measure(low=True, high=True),
    "new_names": Measure(low=True, high=True),
    "copied_from_input": Measure(low=False, high=True),
    "copied_from_training": Measure(low=False, high=True),
    "length": Measure(low=True, high=True),
    "perplexity": Measure(low=True, high=True),
}


@dataclass(frozen=True)
class Content:
    """An answer, taken apart.

    Attributes:
        texts: what is written for a reader, in its order.
        items: the texts in lists; where there are none, the sentences.
    """

    texts: list[str]
    items: list[str]


def content_of(role: Role, text: str) -> Content:
    """The content of a model's answer; of one that is no document of the role's, what its lines seem to say."""
    text = text[:MAX_TEXT]
    found = role.prose_of(text)
    if not found:
        listed = [match.strip("\"' ,") for match in role.form.items.findall(text)]
        texts = [role.form.scaffold.sub(" ", line).strip() for line in text.split("\n")]
    else:
        listed = [one for in_list, one in found if in_list]
        texts = [one for _, one in found]
    texts = [one for one in texts if one]
    items = listed or [part for one in texts for part in _SENTENCE_END.split(one)]
    return Content(texts, [one for one in items if one.strip()][:MAX_ITEMS])


def measure(
    role: Role, question: str, text: str, content: Content, copied: float | None = None
) -> dict[str, float | None]:
    """The measures of one answer that need no other answer and no model; None where there is nothing to measure.

    Args:
        content: content_of the text.
        copied: words of the longest run that is one training answer's, where known.

    Returns:
        repeated_items: share of the items that repeat an earlier one of the answer, or nearly so.
        distinct_trigrams: distinct sequences of three words / all.
        input_words_used: share of the input's content words that the answer uses; input_words_in_items: that its items
            use, so that a title alone makes no answer to this input.
        new_figures, new_names: how many different figures and proper names it has that the input has not.
        copied_from_input, copied_from_training: words of the longest run that is the input's (copied).
        words: its words.
    """
    sequence = answer_words(text, role.form)
    trigrams = list(zip(*(sequence[i:] for i in range(N)), strict=False))
    prose = "\n".join(content.texts)
    return {
        "repeated_items": len(repeats(content.items)) / len(content.items) if content.items else None,
        "distinct_trigrams": len(set(trigrams)) / len(trigrams) if trigrams else None,
        "input_words_used": input_words_used(question, text),
        "input_words_in_items": input_words_used(question, "\n".join(content.items)) if content.items else None,
        "new_figures": float(len(set(figures(prose)) - set(figures(question)))),
        "new_names": float(len(_not_in(names(content.texts), question))),
        "copied_from_input": float(TrainingAnswers([question], role.form).longest_run(text)),
        "copied_from_training": copied,
        "words": float(len(sequence)),
    }


def repeats(items: Sequence[str]) -> list[int]:
    """The indices of the items that repeat an earlier one: the same words, or nearly the same (NEAR)."""
    index = _Items()
    return [place for place, item in enumerate(items) if index.add(item, place)]


def shared_items(answers: Sequence[tuple[Any, Sequence[str]]]) -> list[float | None]:
    """The share of each answer's items that an answer to another input has, too, or nearly so (NEAR).

    Args:
        answers: (what was asked, the answer's items); answers to the same are not compared with each other.
    """
    index = _Items()
    for asked, items in answers:
        for item in items:
            index.add(item, asked)
    found: list[float | None] = []
    for asked, items in answers:
        hits = sum(bool(index.like(item) - {asked}) for item in items)
        found.append(hits / len(items) if items else None)
    return found


class KnownPairs:
    """Which words may stand next to each other, by answers that are fit to be read: word salad, gibberish and another
    language have few such pairs, whatever words they are made of.

    Args:
        texts: the answers; the same one twice counts once.
    """

    def __init__(self, role: Role, texts: Iterable[str]) -> None:
        self._role = role
        self._answers: Counter[Any] = Counter()  # pair → answers that have it
        self._texts = set(texts)
        for text in self._texts:
            self._answers.update(self._pairs(content_of(role, text)))

    def share(self, question: str, content: Content, own: str | None = None) -> float | None:
        """The share of an answer's pairs of neighbouring words that the input or an answer to another input has; None
        without a pair.

        Args:
            own: the known answer to this very input, which does not count; None where there is none.
        """
        pairs = self._pairs(content)
        if not pairs:
            return None
        asked = set(pairwise(words(question)))
        apart = self._pairs(content_of(self._role, own)) if own in self._texts else frozenset()
        return sum(self._answers[pair] > (pair in apart) or pair in asked for pair in pairs) / len(pairs)

    def _pairs(self, content: Content) -> set[Any]:
        return {pair for text in content.texts for pair in pairwise(words(text))}


class _Items:
    """Items by their word bigrams, to find those that are like another one."""

    def __init__(self) -> None:
        self._holders: dict[Any, list[int]] = {}
        self._sizes: list[int] = []
        self._owners: list[Any] = []

    def add(self, item: str, owner: Any) -> bool:
        """Whether an item like this one is there already; it is added."""
        grams = _bigrams(item)
        known = bool(self._near(grams))
        for gram in grams:
            holders = self._holders.setdefault(gram, [])
            if len(holders) < MAX_HOLDERS:
                holders.append(len(self._sizes))
        self._sizes.append(len(grams))
        self._owners.append(owner)
        return known

    def like(self, item: str) -> set[Any]:
        """The owners of all items that are like this one."""
        return {self._owners[place] for place in self._near(_bigrams(item))}

    def _near(self, grams: frozenset[Any]) -> list[int]:
        shared: Counter[int] = Counter()
        for gram in grams:
            shared.update(self._holders.get(gram, ()))
        return [place for place, n in shared.items() if 2 * n >= NEAR * (len(grams) + self._sizes[place])]


def _bigrams(item: str) -> frozenset[Any]:
    parts = words(item)
    return frozenset(pairwise(parts)) if len(parts) > 1 else frozenset(parts)


def figures(text: str) -> list[str]:
    """The numbers of a text, as digits alone: 5,800 and 5800 are the same."""
    return [re.sub(r"[.,:]", "", match) for match in _FIGURE.findall(text)]


def names(texts: Sequence[str]) -> set[str]:
    """Words that look like proper names: capitals within a sentence, or two capitals in one word.

    A heading in which most words have capitals has none that could be told by them.
    """
    found: set[str] = set()
    for text in texts:
        longer = [word for word in _WORD.findall(text) if len(word) > 3 and word[0].isalpha()]
        heading = len(longer) > 1 and sum(word[0].isupper() for word in longer) > _HEADING_SHARE * len(longer)
        for sentence in _SENTENCE_END.split(text):
            for place, word in enumerate(_WORD.findall(sentence)):
                capitals = sum(letter.isupper() for letter in word)
                if capitals > 1 or (capitals == 1 and word[0].isupper() and len(word) > 1 and place and not heading):
                    found.add(word)
    return found


def _not_in(found: set[str], question: str) -> set[str]:
    known = set(words(question))
    return {" ".join(parts) for name in found if (parts := words(name)) and not set(parts) <= known}
