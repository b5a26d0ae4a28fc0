"""Signs of an answer that has the form and nothing in it: repetition, recitation, no relation to the input.

In the JSON the input is called concept, as it is for the BA role.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from rescoldo.role.schema import Form
from rescoldo.words import same, words

MAX_TEXT = 100_000  # characters of an answer that are looked at
_PRIME, _BASE = (1 << 61) - 1, 0x5DEECE66D3A7F1
_STOPWORD_TEXT = """
a about above after again all also although among an and any are as at be because been before being below between both
but by can could did do does doing done down during each either every few for from further get gets had has have
having he her here hers him his how i if in into is it its itself just let like may me might more most must my need
needs neither no nor not now of off on once one only onto or other our ours out over own per same shall she should
since so some such than that the their theirs them then there these they this those through to too two under until up
upon us use used user users uses using very via want wants was we were what when where which while who whom whose why
will with within without would yet you your yours
al algo algun alguna algunas alguno algunos ante antes asi aun aunque bajo bien cada casi como con contra cosa cual
cuales cualquier cuando cuanto de debe deben deber debera del desde donde dos durante e el ella ellas ello ellos en
entre era eran es esa esas ese eso esos esta estaba estan estar estas este esto estos fue fueron ha haber habia hace
hacer hacia han hasta hay la las le les lo los mas me mediante mi mientras misma mismas mismo mismos mucho muchos muy
nada ni no nos nosotros nuestra nuestro o os otra otras otro otros para pero poco por porque pueda puede pueden pues
que quien quienes quiere quieren se sea sean segun ser sera si sido sin sino sobre solo son su sus tal tambien tan
tanto te tener tiene tienen toda todas todo todos tras u un una unas uno unos usan usar usuario usuarios usa y ya
"""
_STOPWORDS = frozenset(_STOPWORD_TEXT.split())
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)


def content_words(text: str) -> set[str]:
    """The words that carry the subject: numbers, and words of three letters or more without stop words and plurals."""
    return {_stem(word) for word in words(text) if word not in _STOPWORDS and (len(word) >= 3 or word.isdigit())}


def _stem(word: str) -> str:
    """Just enough that singular and plural, English or Spanish, mostly meet: patients = patient, citas = cita."""
    if len(word) <= 3 or not word.isalpha():
        return word
    for ending, instead in (("ies", "y"), ("ones", "on"), ("sses", "ss"), ("s", "")):
        if word.endswith(ending) and not word.endswith("ss"):
            return word[: -len(ending)] + instead
    return word


def answer_words(text: str, form: Form) -> list[str]:
    """The words of an answer's values: no keys, IDs, priorities or fences, which all answers share."""
    return words(form.scaffold.sub(" ", _FENCE.sub(" ", text[:MAX_TEXT])))


def input_words_used(asked: str, text: str) -> float | None:
    """The share of the input's content words that the answer uses; None where the input has none."""
    wanted = content_words(asked)
    if not wanted:
        return None
    return len(wanted & content_words(text[:MAX_TEXT])) / len(wanted)


def duplicate_descriptions(text: str, form: Form) -> int:
    """How many descriptions (what is written for a reader in a list's items) repeat an earlier one of the answer."""
    found = Counter(same(match) for match in form.items.findall(text[:MAX_TEXT]))
    return sum(times - 1 for key, times in found.items() if key)


class TrainingAnswers:
    """All answers of a training set, indexed to find what an answer has copied from one of them."""

    def __init__(self, texts: Iterable[str], form: Form) -> None:
        self._form = form
        self._numbers: dict[str, int] = {}
        self._answers = [self._prefixes(answer_words(text, self._form)) for text in texts]
        self._runs: dict[int, set[int]] = {}

    def longest_run(self, text: str) -> int:
        """The length in words of the longest run that stands word by word in one training answer, too."""
        own = self._prefixes(answer_words(text, self._form))
        low, high = 0, min(len(own), max(map(len, self._answers), default=1)) - 1
        while low < high:  # a run of n words contains one of n - 1: so n can be searched by halving
            middle = (low + high + 1) // 2
            if middle not in self._runs:
                self._runs[middle] = {run for answer in self._answers for run in _runs(answer, middle)}
            if self._runs[middle].isdisjoint(_runs(own, middle)):
                high = middle - 1
            else:
                low = middle
        return low

    def _prefixes(self, sequence: list[str]) -> list[int]:
        """A polynomial hash of each beginning of the sequence, from which that of any run follows in one step."""
        prefixes = [0]
        for word in sequence:
            number = self._numbers.setdefault(word, len(self._numbers) + 1)
            prefixes.append((prefixes[-1] * _BASE + number) % _PRIME)
        return prefixes


def _runs(prefixes: list[int], n: int) -> Iterator[int]:
    """The hashes of all runs of n words."""
    power = pow(_BASE, n, _PRIME)
    return ((end - start * power) % _PRIME for start, end in zip(prefixes, prefixes[n:], strict=False))


def diagnose(asked: str | None, text: str, training: TrainingAnswers | None, form: Form) -> dict[str, Any]:
    """The diagnostics of one answer; without training answers the copied run is None, without the input its share."""
    return {
        "duplicate_descriptions": duplicate_descriptions(text, form),
        "concept_words_used": None if asked is None else input_words_used(asked, text),
        "longest_copied_run": training.longest_run(text) if training else None,
    }
