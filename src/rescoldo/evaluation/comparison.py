"""Evaluations of the same inputs side by side: ranking, paired tests, effect sizes, decision."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.evaluation.decision import decide
from rescoldo.evaluation.sampled import sampled_tests
from rescoldo.evaluation.score import DOUBTS, document_score_of, doubts
from rescoldo.evaluation.statistics import paired
from rescoldo.evaluation.verdict import with_verdict
from rescoldo.phrase import Phrase, as_data, listed


def by_example(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The score of each example in its order, the mean where it was answered several times."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(int(row["example"]), []).append(float(row["score"]))
    return [statistics.fmean(found[example]) for example in sorted(found)]


def _guards(
    models: Mapping[str, Mapping[str, Any]], decision: Mapping[str, Any], finetuned: str, reference: str
) -> list[Phrase]:
    """A warning where answers that only look good have decided: if with them at 0 the decision is another one."""
    strict: dict[str, list[float]] = {}
    counts: list[Phrase] = []
    for name in (reference, finetuned):
        rows = models[name]["predictions"]
        doubtful = [doubts(row) for row in rows]
        strict[name] = by_example(
            [{**row, "score": 0.0} if why else row for row, why in zip(rows, doubtful, strict=True)]
        )
        kinds = Counter(kind for why in doubtful for kind in why if why)
        if kinds:
            found = listed(Phrase(DOUBTS[kind], k=count, n=len(rows)) for kind, count in kinds.items())
            counts.append(Phrase("{model}: {what}", model=name, what=found))
    other = _otherwise(strict, decision, finetuned, reference)
    if not other:
        return []
    text = "with doubtful answers counted as 0 ({counts}) {other}: read those answers before you rely on the score"
    return [Phrase(text, counts=_both(counts), other=other)]


def _both(counts: Sequence[Phrase]) -> Phrase:
    """What is said of one model, or of two."""
    return Phrase("{first}; {last}", first=counts[0], last=counts[1]) if len(counts) == 2 else counts[0]


def _text_around(
    models: Mapping[str, Mapping[str, Any]], decision: Mapping[str, Any], finetuned: str, reference: str
) -> list[Phrase]:
    """A warning where text around valid documents has decided: with the documents alone it is another decision."""
    alone: dict[str, list[float]] = {}
    counts: list[Phrase] = []
    for name in (reference, finetuned):
        rows = models[name]["predictions"]
        better = [max(row["score"], document_score_of(row) or 0.0) for row in rows]
        alone[name] = by_example([{**row, "score": score} for row, score in zip(rows, better, strict=True)])
        changed = sum(score > row["score"] for row, score in zip(rows, better, strict=True))
        if changed:
            counts.append(Phrase("{model}: {k} of {n}", model=name, k=changed, n=len(rows)))
    other = _otherwise(alone, decision, finetuned, reference)
    if not other:
        return []
    text = "with the text around valid documents taken off ({counts}) {other}: taking it off needs no training"
    return [Phrase(text, counts=_both(counts), other=other)]


def _without_failures(
    models: Mapping[str, Mapping[str, Any]], decision: Mapping[str, Any], finetuned: str, reference: str
) -> list[Phrase]:
    """A warning where failed answers have decided: a server's fault is none of the model's."""
    names = (reference, finetuned)
    failed = {row["example"] for name in names for row in models[name]["predictions"] if "error" in row}
    if not failed:
        return []
    kept = {
        name: by_example([row for row in models[name]["predictions"] if row["example"] not in failed]) for name in names
    }
    if not kept[finetuned]:
        text = "there is no input that both {reference} and {model} have answered: the decision is worth nothing"
        return [Phrase(text, reference=reference, model=finetuned)]
    other = _otherwise(kept, decision, finetuned, reference)
    if not other:
        return []
    text = (
        "without the inputs that a model failed to answer ({k}) {other}: give the same command again, "
        "those answers are asked for anew"
    )
    return [Phrase(text, k=len(failed), other=other)]


def _otherwise(
    scores: Mapping[str, Sequence[float]], decision: Mapping[str, Any], finetuned: str, reference: str
) -> Phrase | None:
    """What these scores would decide, in words; None if it is the same."""
    other = decide(scores, finetuned=finetuned, reference=reference)
    if other["winner"] == decision["winner"]:
        return None
    verdict = Phrase("adopt {model}", model=finetuned) if other["adopt"] else Phrase("keep {model}", model=reference)
    means = listed(
        Phrase("{model} {mean:.1%}", model=name, mean=statistics.fmean(values)) for name, values in scores.items()
    )
    return Phrase("the means would be {means}, and the decision would be to {verdict}", means=means, verdict=verdict)


def build_comparison(
    models: Mapping[str, Mapping[str, Any]],
    *,
    baseline: str,
    finetuned: str | None = None,
    optimized: str | None = None,
    train_score: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    reference: Mapping[str, Any] | None = None,
    people: Mapping[str, Any] | None = None,
    judges: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The comparison document.

    Args:
        models: name → its part as `evaluate` returns it; all over the same inputs in the same order.
        baseline: the untouched model (M1); differences in the ranking are to it.
        finetuned: the model to decide on (M3); None: no decision.
        optimized: the model with the better prompt (M2), if there is one; the decision is against it, else against M1.
        train_score: the fine-tuned model's mean on its training set.
        metadata, people, judges: put into the document as they are; the latter two where there are any.
        reference: the dataset's own answers, as `measure_content` returns them.

    Returns:
        {"metadata", "reference", "models", "comparison": {"ranking", "statistical_tests", "effect_sizes", "decision",
        and "sampled" (see sampled.sampled_tests) where models answered several times}};
        the tests stand under "B - A", difference = B - A; the decision has its verdict (see verdict.with_verdict).

    Raises:
        RescoldoError: fewer than two models, an unknown name, different inputs, a score that is NaN or infinite.
    """
    if len(models) < 2:
        raise RescoldoError("a comparison needs two models or more", fix="evaluate another one on the same dataset")
    for name in (baseline, finetuned, optimized):
        if name is not None and name not in models:
            raise RescoldoError(f"there is no model {name!r} among {', '.join(models)}")
    first, *others = models
    concepts = {name: [row["concept"] for row in part["predictions"]] for name, part in models.items()}
    for name in others:
        if concepts[name] != concepts[first]:
            raise RescoldoError(
                f"{first} and {name} were evaluated on different inputs", fix="evaluate both with the same --dataset"
            )
    scores = {name: by_example(part["predictions"]) for name, part in models.items()}
    for name, values in scores.items():
        if not all(map(math.isfinite, values)):
            raise RescoldoError(
                f"{name} has a score that is NaN or infinite: nothing can be decided by it",
                fix="fix the metric: each score is a number between 0 and 1",
            )
    means = {name: float(part["scores"]["mean"]) for name, part in models.items()}
    # ties go to the simpler model: the one named first
    ranked = sorted(models, key=lambda name: -round(means[name], 9))
    order = [baseline, *(name for name in models if name not in (baseline, optimized, finetuned))]
    order += [name for name in (optimized, finetuned) if name is not None]
    order = list(dict.fromkeys(order))
    tests: dict[str, Any] = {}
    effects: dict[str, Any] = {}
    for old, new in combinations(order, 2):
        test = paired(scores[old], scores[new])
        effects[f"{new} - {old}"] = {
            "cohens_d": test.pop("cohens_d"),
            "size": test.pop("cohens_d_note"),
            "mean_difference": test["mean_difference"],
        }
        tests[f"{new} - {old}"] = {"first": old, "second": new, **test}
    decision = None
    if finetuned is not None:
        decision = decide(
            {name: scores[name] for name in models},
            finetuned=finetuned,
            reference=optimized or baseline,
            baseline=baseline,
            train_score=train_score,
        )
        decision["warnings"] = [
            warning
            for guard in (_without_failures, _text_around, _guards)
            for warning in guard(models, decision, finetuned, optimized or baseline)
        ]
        for name in (finetuned, optimized or baseline):
            decision["reasons"] += [
                Phrase("{model}: {what}", model=name, what=warning) for warning in models[name].get("warnings", [])
            ]
        decision["messages"] = {
            "sentence": decision["sentence"].json,
            "caveat": decision["caveat"].json if decision["caveat"] else None,
            "reasons": as_data(decision["reasons"]),
            "warnings": as_data(decision["warnings"]),
        }
    document: dict[str, Any] = {
        "metadata": dict(metadata or {}),
        "reference": dict(reference) if reference else None,
        "models": {name: dict(models[name]) for name in models},
        "comparison": {
            "ranking": [
                {
                    "rank": place + 1,
                    "model": name,
                    "mean": means[name],
                    "difference_to_baseline": means[name] - means[baseline],
                }
                for place, name in enumerate(ranked)
            ],
            "statistical_tests": tests,
            "effect_sizes": effects,
            **({"sampled": several} if (several := sampled_tests(models, order)) else {}),
            "decision": decision,
        },
    }
    if people:
        document["people"] = dict(people)
    if judges:
        document["judges"] = [dict(judge) for judge in judges]
    return with_verdict(document)
