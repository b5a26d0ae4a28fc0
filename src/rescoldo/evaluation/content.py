"""Which answers are unlike the dataset's own: every measure's normal range, and who is outside it.

The ranges come from the dataset's own (reference) answers, so that "too repetitive" or "too many new figures" need no
threshold that somebody made up. A range goes from the least to the greatest reference value, and half an interquartile
range beyond both: of answers as good as the references about 5 to 8 of 100 are outside of one range or another
(measured with the sample dataset, ranges from 22 answers). How many of the references are, each held against the
others, is measured too, and is what a model is compared with.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from rescoldo.evaluation.diagnostics import TrainingAnswers
from rescoldo.evaluation.measures import MEASURES, KnownPairs, content_of, measure, shared_items
from rescoldo.evaluation.statistics import fisher_greater, wilson
from rescoldo.role import Role

FEWEST = 10  # reference answers below which there is no range
MOST = 500  # reference answers that are measured
MARGIN = 0.5  # interquartile ranges by which a range is wider than the reference values
LEVEL = 0.05  # p-value (Fisher, one-sided) below which a model has more doubtful answers than the references

Values = dict[str, float | None]
Records = Sequence[dict[str, Any]]


class Scale(Protocol):
    """A model by which answers are measured: all by the same one, usually the base."""

    def describe(self) -> dict[str, Any]:
        """What a document says about the model."""

    def count_tokens(self, text: str) -> int:
        """The tokens of a text."""

    def answer_perplexity(self, role: Role, answers: Sequence[tuple[dict[str, Any], str]]) -> list[float | None]:
        """The perplexity of each (record, answer), given the record's prompt; None where it does not fit."""


def measure_content(
    models: Mapping[str, Mapping[str, Any]],
    role: Role,
    records: Records,
    *,
    training: TrainingAnswers | None = None,
    training_records: Records = (),
    scale: Scale | None = None,
    perplexity: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Measure all answers and hold them against the references.

    Args:
        models: name → its part as `evaluate` returns it.
        records: what was asked; the references are their own answers.
        training_records: the references where less than FEWEST records have an answer; and, beside them, what words
            stand next to each other in answers that are fit to be read.
        scale: counts tokens, and measures perplexity; without one, length is in words.
        perplexity: measure it (costs a forward pass over each answer).

    Returns:
        The models, each prediction with `content` {"measures": {name: value}, "outside": {name: "below" | "above"}}
        and each part with `content` (see _summary); and the references: source ("dataset" or "training"), answers,
        length_unit, scale, ranges {name: {low, high}} (None on a side that is no bad sign) and their own `content`.
        Without enough references `outside` is empty and the second is None.
    """
    source, chosen, learned = "dataset", _answered(role, records), _answered(role, training_records)
    known = KnownPairs(role, [role.target(record) for record in (*chosen, *learned)])
    measured_by = _Measuring(role, training, scale, perplexity, known)
    if len(chosen) < FEWEST:
        source, chosen = "training", learned
    answers = [(place, record, role.target(record)) for place, record in enumerate(chosen)]
    references = measured_by(answers, own=True) if len(answers) >= FEWEST else []
    ranges = ranges_of(references) if references else {}
    reference: dict[str, Any] | None = None
    if references:
        rest = [ranges_of([*references[:i], *references[i + 1 :]]) for i in range(len(references))]
        found = [outside(values, others) for values, others in zip(references, rest, strict=True)]
        reference = {
            "source": source,
            "answers": len(references),
            "length_unit": measured_by.length_unit,
            "scale": scale.describe() if scale else None,
            "ranges": ranges,
            "content": _summary(list(range(len(found))), references, found),
        }
    parts = {
        name: _judged(part, role, measured_by, records, ranges, reference["content"] if reference else None)
        for name, part in models.items()
    }
    return parts, reference


def unlike_references(
    role: Role, references: Records, answers: Sequence[tuple[int, dict[str, Any], str]]
) -> list[dict[str, str]] | None:
    """By which measures each answer is unlike the references' own: name → "below" or "above". Needs no model; the
    length is in words.

    Args:
        references: records with answers that are good.
        answers: (index of what was asked, record, text).

    Returns:
        One for each answer; None where fewer than FEWEST references have an answer.
    """
    chosen = _answered(role, references)
    if len(chosen) < FEWEST:
        return None
    measured_by = _Measuring(role, None, None, False, KnownPairs(role, [role.target(one) for one in chosen]))
    ranges = ranges_of(measured_by([(i, one, role.target(one)) for i, one in enumerate(chosen)], own=True))
    written = [(asked, record, role.rewritten(text)) for asked, record, text in answers]
    return [outside(values, ranges) for values in measured_by(written)]


def _judged(
    part: Mapping[str, Any],
    role: Role,
    measured_by: _Measuring,
    records: Records,
    ranges: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A model's part with the content of its answers; those that failed have none."""
    rows = [dict(row) for row in part["predictions"]]
    answered = [row for row in rows if "error" not in row]
    values = measured_by(
        [(row["example"], (record := records[row["example"]]), _text(role, record, row)) for row in answered]
    )
    found = [outside(one, ranges) for one in values]
    for row, one, why in zip(answered, values, found, strict=True):
        row["content"] = {"measures": one, "outside": why}
    summary = _summary([row["example"] for row in answered], values, found)
    if reference:
        p_value = fisher_greater(
            (summary["doubtful_inputs"], summary["inputs"]), (reference["doubtful_inputs"], reference["inputs"])
        )
        summary |= {"p_value": p_value, "doubtful_model": p_value < LEVEL}
    return {**part, "predictions": rows, "content": summary}


def _answered(role: Role, records: Records) -> list[dict[str, Any]]:
    """The records that have an answer without faults, MOST at most."""
    found = (one for one in records if role.answer_of(one) is not None and not role.check(one, "", 0))
    return list(islice(found, MOST))


def _text(role: Role, record: dict[str, Any], row: Mapping[str, Any]) -> str:
    """An answer as the role writes answers: what a program returned as fields, and a document in another layout, as a
    server's JSON on one line; what is no document stays as the model wrote it."""
    if "fields" not in row:
        return role.rewritten(str(row["text"]))
    return role.target({**record, role.spec.answer: row["fields"]})


class _Measuring:
    """Measures answers: (index of what was asked, record, text)."""

    def __init__(
        self, role: Role, training: TrainingAnswers | None, scale: Scale | None, perplexity: bool, known: KnownPairs
    ) -> None:
        self._role, self._training, self._scale, self._perplexity = role, training, scale, perplexity
        self._known = known
        self.length_unit = "tokens" if scale else "words"

    def __call__(self, answers: Sequence[tuple[int, dict[str, Any], str]], own: bool = False) -> list[Values]:
        """The MEASURES of each. `own`: the dataset's answers, which may stand in the training set, too."""
        role = self._role
        contents = [content_of(role, text) for _, _, text in answers]
        found = [
            measure(
                role, role.question(record), text, content, self._training.longest_run(text) if self._training else None
            )
            for (_, record, text), content in zip(answers, contents, strict=True)
        ]
        shared = shared_items(
            [(asked, content.items) for (asked, _, _), content in zip(answers, contents, strict=True)]
        )
        perplexities: Sequence[float | None] = [None] * len(answers)
        if self._perplexity and self._scale:
            perplexities = self._scale.answer_perplexity(role, [(record, text) for _, record, text in answers])
        values = []
        pairs = [
            self._known.share(role.question(record), content, _own_answer(role, record))
            for (_, record, _), content in zip(answers, contents, strict=True)
        ]
        for (_, _, text), one, also, known, perplexity in zip(answers, found, shared, pairs, perplexities, strict=True):
            number_of_words = one.pop("words")
            if own and one["copied_from_training"] == number_of_words:
                one["copied_from_training"] = None
            length = float(self._scale.count_tokens(text)) if self._scale else number_of_words
            one |= {"shared_items": also, "known_pairs": known, "length": length, "perplexity": perplexity}
            values.append({name: one[name] for name in MEASURES})
        return values


def _own_answer(role: Role, record: dict[str, Any]) -> str | None:
    return None if role.answer_of(record) is None else role.target(record)


def ranges_of(references: Sequence[Values]) -> dict[str, dict[str, float | None]]:
    """Measure → low, high: what is normal, by the references; None on a side where no value is a bad sign."""
    ranges = {}
    for name, kind in MEASURES.items():
        known = sorted(value for values in references if (value := values[name]) is not None)
        if len(known) < min(FEWEST - 1, len(references)):
            continue
        quartiles = statistics.quantiles(known, n=4, method="inclusive")
        margin = MARGIN * (quartiles[2] - quartiles[0])
        low, high = known[0] - margin, known[-1] + margin
        ranges[name] = {
            "low": max(low, 0.0) if kind.low else None,
            "high": (min(high, 1.0) if kind.share else high) if kind.high else None,
        }
    return ranges


def outside(values: Values, ranges: Mapping[str, Mapping[str, float | None]]) -> dict[str, str]:
    """The measures by which an answer is unlike the references: name → "below" or "above"."""
    found = {}
    for name, limits in ranges.items():
        value, low, high = values.get(name), limits["low"], limits["high"]
        if value is None:
            continue
        if low is not None and value < low and not math.isclose(value, low):
            found[name] = "below"
        elif high is not None and value > high and not math.isclose(value, high):
            found[name] = "above"
    return found


def _summary(inputs: Sequence[int], values: Sequence[Values], found: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A set of answers, `inputs` saying what each was asked.

    Returns:
        answers; doubtful, those outside of a range; inputs, doubtful_inputs (of an input that was answered several
        times, as many as are most of them); share of doubtful answers with its interval_95 (Wilson's, over inputs);
        by_measure {name: {"below" or "above": answers}}, the most frequent first; measures {name: {min, median, max}}.
    """
    by_input: dict[int, list[bool]] = {}
    for asked, why in zip(inputs, found, strict=True):
        by_input.setdefault(asked, []).append(bool(why))
    shares = [statistics.fmean(each) for each in by_input.values()]
    measures = {}
    for name in MEASURES:
        known = [value for one in values if (value := one[name]) is not None]
        if known:
            measures[name] = {"min": min(known), "median": statistics.median(known), "max": max(known)}
    counts: dict[str, Counter[str]] = {}
    for name, side in (one for why in found for one in why.items()):
        counts.setdefault(name, Counter())[side] += 1
    by_measure = sorted(counts.items(), key=lambda entry: -entry[1].total())
    return {
        "answers": len(found),
        "doubtful": sum(map(bool, found)),
        "inputs": len(shares),
        "doubtful_inputs": sum(share > 0.5 for share in shares),
        "share": statistics.fmean(shares) if shares else None,
        "interval_95": list(wilson(sum(shares), len(shares))) if shares else None,
        "by_measure": {name: dict(sides) for name, sides in by_measure},
        "measures": measures,
    }
