"""A set of predictions, scored: what stands in the JSON for each prediction and for the set."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rescoldo.evaluation.diagnostics import TrainingAnswers, diagnose, input_words_used
from rescoldo.evaluation.embedded import document_score
from rescoldo.models.predictor import Prediction
from rescoldo.phrase import Phrase, as_data
from rescoldo.role import Role
from rescoldo.role.metrics import Note, place_of

EPSILON = 1e-9  # so that sums of thirds and fifths count as what they are meant to be
COPIED_WORDS = 25  # a run of words taken from one training answer, from which on the reader is told
IGNORED_SHARE = 0.2  # share of the input's words used, below which an answer seems to be about something else
DOUBTS = {  # why an answer may be worth less than its score → how many answers are so
    "cut off": "{k} of {n} cut off",
    "copied from a training answer": "{k} of {n} copied from a training answer",
    "ignoring the input": "{k} of {n} ignoring the input",
}


def answers_use_input(role: Role, records: Sequence[dict[str, Any]]) -> bool:
    """Whether an answer that hardly uses its input's words is a bad sign: not where the records' own answers do not.

    Labels, figures and translations share few words with what was asked, however right they are.
    """
    answered = (record for record in records if role.answer_of(record) is not None)
    shares = [input_words_used(role.key(record), role.target(record)) for record in answered]
    known = [share for share in shares if share is not None]
    return not known or statistics.fmean(known) >= IGNORED_SHARE


def score_row(
    role: Role,
    record: dict[str, Any],
    prediction: Prediction,
    training: TrainingAnswers | None,
    *,
    use_input: bool = True,
) -> dict[str, Any]:
    """One element of `predictions`: concept, text, score, components, notes, places
    (where in the text each note belongs, see role.metrics.Place), messages (of the notes, see phrase.as_data), ended,
    tokens, seconds, diagnostics.

    Args:
        use_input: whether the answer's share of the input's words says anything (answers_use_input).
    """
    notes: list[str]
    if prediction.error:
        score = role.score("", record)
        notes = [Phrase("answer: none: {why}", why=prediction.error)]
    else:
        score = role.score(prediction.text if prediction.fields is None else prediction.fields, record)
        notes = list(score.notes)
        if not prediction.ended:
            notes.append(Note.at(Phrase("cut off after {tokens} tokens", tokens=prediction.tokens), -1))
    row: dict[str, Any] = {
        "concept": role.key(record),
        "text": prediction.text,
        "score": score.total,
        "components": score.components,
        "notes": notes,
        "places": [list(place_of(note)) for note in notes],
        "messages": {"notes": as_data(notes)},
        "ended": prediction.ended,
        "tokens": prediction.tokens,
        "seconds": round(prediction.seconds, 3),
        "diagnostics": {
            **diagnose(role.key(record) if use_input else None, role.rewritten(prediction.text), training, role.form),
            "document_score": document_score(role, prediction, record),
        },
    }
    if prediction.fields is not None:
        row["fields"] = prediction.fields
    if prediction.error:
        row["error"] = prediction.error
    if score.failures:
        row["failures"] = score.failures
    return row


def doubts(row: Mapping[str, Any]) -> list[str]:
    """Why an answer may be worth less than its score: keys of DOUBTS."""
    found = row["diagnostics"]
    used, copied = found["concept_words_used"], found["longest_copied_run"]
    reasons = {
        "cut off": not row["ended"] and "error" not in row,
        "copied from a training answer": copied is not None and copied >= COPIED_WORDS,
        "ignoring the input": used is not None and used < IGNORED_SHARE and bool(row["text"].strip()),
    }
    return [name for name, is_so in reasons.items() if is_so]


def document_score_of(row: Mapping[str, Any]) -> float | None:
    """What an answer would score if the document within its text were all of it; None where there is none."""
    found = row["diagnostics"].get("document_score")
    return None if found is None else float(found)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `models.<name>` part: scores, component_scores, diagnostics and warnings of the set, messages (of the
    warnings, see phrase.as_data), and the predictions.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no predictions to summarise")
    totals = [row["score"] for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row["components"]))
    diagnostics = _diagnostics(rows)
    warnings = _failures(rows) + _missing(rows) + _warnings(diagnostics, len(rows))
    return {
        "scores": {
            "mean": statistics.fmean(totals),
            "median": statistics.median(totals),
            "std": statistics.stdev(totals) if len(totals) > 1 else 0.0,
            "min": min(totals),
            "max": max(totals),
            "pass_rate_0.8": _share(totals, 0.8),
            "pass_rate_0.9": _share(totals, 0.9),
            "perfect_rate_1.0": _share(totals, 1.0),
        },
        "component_scores": {
            name: statistics.fmean(row["components"][name] for row in rows if name in row["components"])
            for name in names
        },
        "diagnostics": diagnostics,
        "warnings": warnings,
        "messages": {"warnings": as_data(warnings)},
        "predictions": list(rows),
    }


def _share(totals: Sequence[float], least: float) -> float:
    return sum(total >= least - EPSILON for total in totals) / len(totals)


def _diagnostics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    each = [row["diagnostics"] for row in rows]
    used = [entry["concept_words_used"] for entry in each if entry["concept_words_used"] is not None]
    copied = [entry["longest_copied_run"] for entry in each if entry["longest_copied_run"] is not None]
    answered = [i for i, row in enumerate(rows) if row["text"].strip()]
    within = [(row, document_score_of(row) or 0.0) for row in rows]
    return {
        "ended": sum(row["ended"] for row in rows),
        "failed": sum("error" in row for row in rows),
        "mean_tokens": statistics.fmean(row["tokens"] for row in rows),
        "duplicate_descriptions": sum(entry["duplicate_descriptions"] for entry in each),
        "concept_words_used": statistics.fmean(used) if used else None,
        "answers_ignoring_concept": sum(
            each[i]["concept_words_used"] is not None and each[i]["concept_words_used"] < IGNORED_SHARE
            for i in answered
        ),
        "longest_copied_run": max(copied) if copied else None,
        "answers_copying": sum(run >= COPIED_WORDS for run in copied) if copied else None,
        "documents_within_text": sum(found > row["score"] for row, found in within),
        "mean_score_of_documents": statistics.fmean(max(row["score"], found) for row, found in within),
    }


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[Phrase]:
    """The functions of the role that failed: such a 0 says nothing about the model."""
    warnings = []
    for name in dict.fromkeys(name for row in rows for name in row.get("failures", {})):
        reasons = [row["failures"][name] for row in rows if name in row.get("failures", {})]
        text = "the metric `{name}` failed on {k} of {n} answers ({why}); it counts as 0 there"
        warnings.append(Phrase(text, name=name, k=len(reasons), n=len(rows), why=common(reasons)))
    return warnings


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[Phrase]:
    """The answers that there are none of, and why."""
    reasons = [row["error"] for row in rows if "error" in row]
    if not reasons:
        return []
    text = "{k} of {n} answers failed and count as 0 ({why})"
    return [Phrase(text, k=len(reasons), n=len(rows), why=common(reasons))]


def common(reasons: Iterable[str]) -> str:
    """The reason that came most often, and whether there were others; there is one at least."""
    found = Counter(reasons)
    why, _ = found.most_common(1)[0]
    return Phrase("most often {why}", why=why) if len(found) > 1 else why


def _warnings(found: Mapping[str, Any], n: int) -> list[Phrase]:
    """What would change how the reader takes the score."""
    warnings = []
    cut = n - found["ended"] - found["failed"]
    if cut > 0:
        warnings.append(Phrase("{k} of {n} answers were cut off at the limit of new tokens", k=cut, n=n))
    within = found["documents_within_text"]
    if within:
        text = (
            "{k} of {n} answers hold a valid document with text around it, which scores less than the document alone: "
            "without the text the mean would be {mean:.1%}"
        )
        warnings.append(Phrase(text, k=within, n=n, mean=found["mean_score_of_documents"]))
    copying, ignoring = found["answers_copying"], found["answers_ignoring_concept"]
    if copying:
        text = "{k} of {n} answers copy {words} words in a row from a training answer (longest: {longest})"
        warnings.append(Phrase(text, k=copying, n=n, words=COPIED_WORDS, longest=found["longest_copied_run"]))
    if ignoring:
        text = "{k} of {n} answers use less than {share:.0%} of their input's words"
        warnings.append(Phrase(text, k=ignoring, n=n, share=IGNORED_SHARE))
    if repeated := found["duplicate_descriptions"]:
        warnings.append(Phrase("{k} descriptions repeat an earlier one of the same answer", k=repeated))
    return warnings
