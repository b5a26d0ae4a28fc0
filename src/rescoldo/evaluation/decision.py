"""Adopt the fine-tuned model or not: the rule of docs/evaluation.md, with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rescoldo.evaluation.statistics import examples_to_settle, fewest_to_settle, paired

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
        (empty: for what the scores do not show). Where it is not settled, the sentence says so.
    """
    old, new = list(scores[reference]), list(scores[finetuned])
    test = paired(old, new)
    mean_old, mean_new = _mean(old), _mean(new)
    difference = round(mean_new - mean_old, _ROUND)
    points = f"{100 * difference:+.1f} points"
    if difference < 0:
        rule = "worse"
    elif difference < WORTH_IT:
        rule = "too_small"
    elif round(mean_new, _ROUND) < GOOD_ENOUGH:
        rule = "not_good_enough"
    else:
        rule = "adopt"
    good = round(mean_new, _ROUND) >= GOOD_ENOUGH
    ahead = "at least" if difference >= WORTH_IT else "less than"
    better = f"{finetuned} is better ({points}), but at {mean_new:.1%} below {GOOD_ENOUGH:.0%}"
    sentence = {
        "adopt": f"Adopt {finetuned}: it scores {mean_new:.1%}, {points} against {reference}.",
        "too_small": f"Keep {reference}: {finetuned} is only {points} ahead, and {reference} is the simpler one.",
        "worse": f"Keep {reference}: {finetuned} is at {points}; overfitting is suspected.",
        "not_good_enough": f"Keep {reference}: {better}.",
    }[rule]
    reasons = [
        f"{finetuned} {mean_new:.1%}, {'at least' if good else 'below'} {GOOD_ENOUGH:.0%}",
        f"{finetuned} - {reference}: {points}, {ahead} {100 * WORTH_IT:.0f} points",
    ]
    if rule == "worse" and train_score is None:
        reasons.append("overfitting is suspected: its score on the training set would show it (--train-set)")
    elif rule == "worse" and train_score is not None:
        against = "" if train_score - mean_new >= WORTH_IT else ", hardly more than here, which speaks against it"
        reasons.append(f"overfitting is suspected: {finetuned} scores {train_score:.1%} on its training set{against}")
    elif train_score is not None:
        reasons.append(f"{finetuned} scores {train_score:.1%} on its training set")
    if rule == "not_good_enough":
        reasons.append("what to try next: more or better examples, more epochs, a higher rank, all linears as targets")
    if baseline and baseline not in (reference, finetuned):
        base = _mean(list(scores[baseline]))
        reasons.append(f"{baseline} {base:.1%}")
        if round(base - max(mean_old, mean_new), _ROUND) > 0:
            reasons.append(f"{baseline}, the untouched model, is better than both: look at the answers before deciding")
    doubt = _uncertainty(test, old, new, f"{finetuned} - {reference}")
    reasons.append(doubt.pop("reason"))
    return {
        "finetuned": finetuned,
        "reference": reference,
        "baseline": baseline or reference,
        "means": {name: _mean(list(values)) for name, values in scores.items()},
        "difference": difference,
        "adopt": rule == "adopt",
        "winner": finetuned if rule == "adopt" else reference,
        "rule": rule,
        "sentence": sentence + (f" But {doubt['caveat']}." if doubt["caveat"] else ""),
        **doubt,
        "reasons": reasons,
        "warnings": [],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _uncertainty(test: dict[str, Any], old: Sequence[float], new: Sequence[float], name: str) -> dict[str, Any]:
    """Whether luck could have decided: threshold, interval_95 and its method, settled, examples_needed; the reason to
    list, and the caveat that belongs into the sentence ("" where it is settled).
    """
    low, high = test["interval_95"]
    settled = not low <= WORTH_IT <= high
    needed: int | None = None
    caveat = ""
    bounds = f"{100 * low:+.1f} to {100 * high:+.1f} points"
    if len(old) == 1:
        caveat = "one example settles nothing: validate on more"
    elif not settled:
        total = examples_to_settle([b - a for a, b in zip(old, new, strict=True)], WORTH_IT)
        needed = max(1, total - len(old)) if total is not None else None
        how = (
            f"about {needed:,} more validation example{'' if needed == 1 else 's'} would settle it"
            if needed
            else "the difference is so close to it that no practicable number of examples would settle it"
        )
        caveat = f"the 95 % interval, {bounds}, includes the threshold of {100 * WORTH_IT:.0f}: {how}"
        if len(old) < (fewest := fewest_to_settle(WORTH_IT)):
            few = f"{len(old)} examples are too few: with fewer than {fewest} no result could settle it"
            caveat = f"{few}; {caveat}"
    return {
        "threshold": WORTH_IT,
        "interval_95": [low, high],
        "interval_method": test["interval_method"],
        "settled": settled,
        "examples_needed": needed,
        "reason": f"the 95 % interval of {name} is {bounds}" if settled else caveat,
        "caveat": caveat,
    }
