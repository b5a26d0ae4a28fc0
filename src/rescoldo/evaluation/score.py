"""A set of predictions, scored: what stands in the JSON for each prediction and for the set."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rescoldo.evaluation.diagnostics import TrainingAnswers, diagnose, input_words_used
from rescoldo.evaluation.embedded import document_score
from rescoldo.models.predictor import Prediction
from rescoldo.role import Role
from rescoldo.role.metrics import Note, place_of

EPSILON = 1e-9  # so that sums of thirds and fifths count as what they are meant to be
COPIED_WORDS = 25  # a run of words taken from one training answer, from which on the reader is told
IGNORED_SHARE = 0.2  # share of the input's words used, below which an answer seems to be about something else


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
    (where in the text each note belongs, see role.metrics.Place), ended, tokens, seconds, diagnostics.

    Args:
        use_input: whether the answer's share of the input's words says anything (answers_use_input).
    """
    if prediction.error:
        score = role.score("", record)
        notes = [f"answer: none: {prediction.error}"]
    else:
        score = role.score(prediction.text if prediction.fields is None else prediction.fields, record)
        notes = list(score.notes)
        if not prediction.ended:
            notes.append(Note.at(f"cut off after {prediction.tokens} tokens", -1))
    row: dict[str, Any] = {
        "concept": role.key(record),
        "text": prediction.text,
        "score": score.total,
        "components": score.components,
        "notes": notes,
        "places": [list(place_of(note)) for note in notes],
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
    """Why an answer may be worth less than its score: "cut off", "copied from a training answer",
    "ignoring the input"."""
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
    """The `models.<name>` part: scores, component_scores, diagnostics and warnings of the set, and the predictions.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no predictions to summarise")
    totals = [row["score"] for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row["components"]))
    diagnostics = _diagnostics(rows)
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
        "warnings": _failures(rows) + _missing(rows) + _warnings(diagnostics, len(rows)),
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


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The functions of the role that failed: such a 0 says nothing about the model."""
    warnings = []
    for name in dict.fromkeys(name for row in rows for name in row.get("failures", {})):
        reasons = [row["failures"][name] for row in rows if name in row.get("failures", {})]
        warnings.append(
            f"the metric `{name}` failed on {len(reasons)} of {len(rows)} answers ({common(reasons)}); "
            "it counts as 0 there"
        )
    return warnings


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The answers that there are none of, and why."""
    reasons = [row["error"] for row in rows if "error" in row]
    if not reasons:
        return []
    return [f"{len(reasons)} of {len(rows)} answers failed and count as 0 ({common(reasons)})"]


def common(reasons: Iterable[str]) -> str:
    """The reason that came most often, and whether there were others; there is one at least."""
    found = Counter(reasons)
    why, _ = found.most_common(1)[0]
    return f"most often {why}" if len(found) > 1 else why


def _warnings(found: Mapping[str, Any], n: int) -> list[str]:
    """What would change how the reader takes the score."""
    warnings = []
    cut = n - found["ended"] - found["failed"]
    if cut > 0:
        warnings.append(f"{cut} of {n} answers were cut off at the limit of new tokens")
    within = found["documents_within_text"]
    if within:
        warnings.append(
            f"{within} of {n} answers hold a valid document with text around it, which scores less than the document "
            f"alone: without the text the mean would be {found['mean_score_of_documents']:.1%}"
        )
    copying, ignoring = found["answers_copying"], found["answers_ignoring_concept"]
    if copying:
        longest = f"(longest: {found['longest_copied_run']})"
        warnings.append(f"{copying} of {n} answers copy {COPIED_WORDS} words in a row from a training answer {longest}")
    if ignoring:
        warnings.append(f"{ignoring} of {n} answers use less than {IGNORED_SHARE:.0%} of their input's words")
    if found["duplicate_descriptions"]:
        warnings.append(f"{found['duplicate_descriptions']} descriptions repeat an earlier one of the same answer")
    return warnings
