"""Adopt the fine-tuned model or not: the rule of docs/evaluation.md, with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rescoldo.evaluation.statistics import examples_to_settle, fewest_to_settle, paired
from rescoldo.phrase import Phrase, Value

GOOD_ENOUGH = 0.90
WORTH_IT = 0.05  # what a fine-tuned model must be ahead to be worth keeping an adapter
_ROUND = 9  # decimals that means are compared with: 0.9035 - 0.8535 is 0.05


def decide(
    scores: Mapping[str, Sequence[float]],
    *,
    finetuned: str,
    reference: str,
    baseline: str | None = None,
    train_score: float | None = None,
) -> dict[str, Any]:
    """The decision between the fine-tuned model and the one it would replace.

    Args:
        scores: model → its score on each input, the inputs in the same order.
        finetuned: the new model (M3).
        reference: what is in use without it: the optimized prompt (M2), or the baseline where there is none.
        baseline: the untouched model (M1), if it is there beside the reference.
        train_score: the fine-tuned model's mean on its training set, if known.

    Returns:
        finetuned, reference, baseline as given; means {model: score}; difference of the first two;
        adopt, winner, rule (adopt, too_small, worse or not_good_enough), sentence, reasons, threshold, interval_95
        (see statistics.mean_interval) and interval_method, settled (the interval excludes the threshold),
        examples_needed (more examples that would settle it, or None), caveat (why it is not settled, or ""), warnings
        (empty: for what the scores do not show). Where it is not settled, the sentence says so. Sentence, reasons and
        caveat are Phrases.
    """
    old, new = list(scores[reference]), list(scores[finetuned])
    test = paired(old, new)
    mean_old, mean_new = _mean(old), _mean(new)
    difference = round(mean_new - mean_old, _ROUND)
    if difference < 0:
        rule = "worse"
    elif difference < WORTH_IT:
        rule = "too_small"
    elif round(mean_new, _ROUND) < GOOD_ENOUGH:
        rule = "not_good_enough"
    else:
        rule = "adopt"
    good = round(mean_new, _ROUND) >= GOOD_ENOUGH
    facts: dict[str, Value] = {"model": finetuned, "reference": reference, "mean": mean_new, "points": 100 * difference}
    sentence = {
        "adopt": Phrase("Adopt {model}: it scores {mean:.1%}, {points:+.1f} points against {reference}.", **facts),
        "too_small": Phrase(
            "Keep {reference}: {model} is only {points:+.1f} points ahead, and {reference} is the simpler one.", **facts
        ),
        "worse": Phrase("Keep {reference}: {model} is at {points:+.1f} points; overfitting is suspected.", **facts),
        "not_good_enough": Phrase(
            "Keep {reference}: {model} is better ({points:+.1f} points), but at {mean:.1%} below {limit:.0%}.",
            limit=GOOD_ENOUGH,
            **facts,
        ),
    }[rule]
    shown: dict[str, Value] = {"model": finetuned, "mean": mean_new, "limit": GOOD_ENOUGH}
    against: dict[str, Value] = {
        "model": finetuned,
        "reference": reference,
        "points": 100 * difference,
        "least": 100 * WORTH_IT,
    }
    reasons = [
        Phrase("{model} {mean:.1%}, at least {limit:.0%}", **shown)
        if good
        else Phrase("{model} {mean:.1%}, below {limit:.0%}", **shown),
        Phrase("{model} - {reference}: {points:+.1f} points, at least {least:.0f} points", **against)
        if difference >= WORTH_IT
        else Phrase("{model} - {reference}: {points:+.1f} points, less than {least:.0f} points", **against),
    ]
    reasons += _overfitting(finetuned, mean_new, train_score, suspected=rule == "worse")
    if rule == "not_good_enough":
        text = "what to try next: more or better examples, more epochs, a higher rank, all linears as targets"
        reasons.append(Phrase(text))
    if baseline and baseline not in (reference, finetuned):
        base = _mean(list(scores[baseline]))
        reasons.append(Phrase("{model} {mean:.1%}", model=baseline, mean=base))
        if round(base - max(mean_old, mean_new), _ROUND) > 0:
            text = "{model}, the untouched model, is better than both: look at the answers before deciding"
            reasons.append(Phrase(text, model=baseline))
    doubt = _uncertainty(test, old, new, f"{finetuned} - {reference}")
    reasons.append(doubt.pop("reason"))
    if doubt["caveat"]:
        sentence = Phrase("{sentence} But {caveat}.", sentence=sentence, caveat=doubt["caveat"])
    return {
        "finetuned": finetuned,
        "reference": reference,
        "baseline": baseline or reference,
        "means": {name: _mean(list(values)) for name, values in scores.items()},
        "difference": difference,
        "adopt": rule == "adopt",
        "winner": finetuned if rule == "adopt" else reference,
        "rule": rule,
        "sentence": sentence,
        **doubt,
        "reasons": reasons,
        "warnings": [],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _overfitting(model: str, mean: float, train_score: float | None, *, suspected: bool) -> list[Phrase]:
    """What the score on the training set says; [] where it is neither known nor missed."""
    if train_score is None:
        text = "overfitting is suspected: its score on the training set would show it (--train-set)"
        return [Phrase(text)] if suspected else []
    if not suspected:
        return [Phrase("{model} scores {mean:.1%} on its training set", model=model, mean=train_score)]
    if train_score - mean >= WORTH_IT:
        text = "overfitting is suspected: {model} scores {mean:.1%} on its training set"
        return [Phrase(text, model=model, mean=train_score)]
    text = (
        "overfitting is suspected: {model} scores {mean:.1%} on its training set, hardly more than here, which speaks "
        "against it"
    )
    return [Phrase(text, model=model, mean=train_score)]


def _uncertainty(test: dict[str, Any], old: Sequence[float], new: Sequence[float], name: str) -> dict[str, Any]:
    """Whether luck could have decided: threshold, interval_95 and its method, settled, examples_needed; the reason to
    list, and the caveat that belongs into the sentence ("" where it is settled).
    """
    low, high = test["interval_95"]
    settled = not low <= WORTH_IT <= high
    needed: int | None = None
    caveat: Phrase | None = None
    bounds = {"low": 100 * low, "high": 100 * high}
    if len(old) == 1:
        caveat = Phrase("one example settles nothing: validate on more")
    elif not settled:
        total = examples_to_settle([b - a for a, b in zip(old, new, strict=True)], WORTH_IT)
        needed = max(1, total - len(old)) if total is not None else None
        text = "the 95 % interval, {low:+.1f} to {high:+.1f} points, includes the threshold of {limit:.0f}: {how}"
        caveat = Phrase(text, limit=100 * WORTH_IT, how=_how_to_settle(needed), **bounds)
        if len(old) < (fewest := fewest_to_settle(WORTH_IT)):
            text = "{n} examples are too few: with fewer than {least} no result could settle it; {caveat}"
            caveat = Phrase(text, n=len(old), least=fewest, caveat=caveat)
    reason = Phrase("the 95 % interval of {name} is {low:+.1f} to {high:+.1f} points", name=name, **bounds)
    return {
        "threshold": WORTH_IT,
        "interval_95": [low, high],
        "interval_method": test["interval_method"],
        "settled": settled,
        "examples_needed": needed,
        "reason": reason if settled else caveat,
        "caveat": caveat or "",
    }


def _how_to_settle(needed: int | None) -> Phrase:
    if not needed:
        return Phrase("the difference is so close to it that no practicable number of examples would settle it")
    if needed == 1:
        return Phrase("about 1 more validation example would settle it")
    return Phrase("about {n:,d} more validation examples would settle it", n=needed)
