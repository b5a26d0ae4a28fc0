"""Paired statistics against scipy and by hand; the decision's branches and their edges."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rescoldo.evaluate.decision import decide
from rescoldo.evaluate.statistics import bootstrap_interval, cohens_d, examples_to_settle, paired

BEFORE = [0.5, 0.6, 0.55, 0.7, 0.4, 0.65, 0.8, 0.3, 0.45, 0.62]
AFTER = [0.7, 0.9, 0.61, 0.72, 0.85, 0.64, 0.97, 0.75, 0.81, 0.6]


def test_against_scipy() -> None:
    found = paired(BEFORE, AFTER)
    differences = np.subtract(AFTER, BEFORE)
    reference = stats.wilcoxon(AFTER, BEFORE)
    assert found["wilcoxon"]["statistic"] == reference.statistic
    assert found["wilcoxon"]["p_value"] == pytest.approx(reference.pvalue)
    assert found["cohens_d"] == pytest.approx(differences.mean() / differences.std(ddof=1))
    theirs = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found["interval_95"] == pytest.approx([theirs.low, theirs.high], abs=0.01)
    assert (found["wins"], found["ties"], found["losses"]) == (8, 0, 2)


def test_by_hand() -> None:
    found = paired([0.0, 0.0, 0.5, 1.0], [1.0, 0.0, 1.0, 0.5])
    assert found["n"] == 4
    assert found["mean_difference"] == 0.25
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    # differences 1, 0, .5, -.5: mean .25, squared deviations .5625 + .0625 + .0625 + .5625 = 1.25, sd sqrt(1.25 / 3)
    assert found["cohens_d"] == pytest.approx(0.25 / math.sqrt(1.25 / 3))
    # ranks of 1, .5, -.5: 3, 1.5, 1.5; the smaller sum is 1.5
    assert found["wilcoxon"]["statistic"] == 1.5


def test_no_difference_is_no_error() -> None:
    found = paired([0.1 + 0.2, 1.0], [0.3, 1.0])
    assert found["wilcoxon"]["p_value"] == 1.0
    assert "no difference" in found["wilcoxon"]["note"]
    assert found["cohens_d"] == 0.0
    assert found["interval_95"] == [0.0, 0.0]
    assert found["ties"] == 2


def test_all_differences_equal() -> None:
    found = paired([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    assert found["cohens_d"] is None
    assert "all differences equal" in found["cohens_d_note"]
    assert found["interval_95"] == [1.0, 1.0]
    json.dumps(found, allow_nan=False)


def test_one_concept() -> None:
    found = paired([0.0], [1.0])
    assert found["interval_95"] == [1.0, 1.0]
    assert "one input only" in found["cohens_d_note"]


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], []), ([1.0], [1.0, 0.0])])
def test_not_paired(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="paired comparison"):
        paired(a, b)


@pytest.mark.parametrize(("a", "b"), [([0.1], [math.nan]), ([math.inf], [math.inf])])
def test_no_numbers(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="no number"):
        decide({"m1": a, "m3": b}, finetuned="m3", reference="m1")


def test_ties_in_rank_are_not_broken_by_rounding() -> None:
    old, new = [0.8, 0.7, 0.6, 0.9, 0.3, 0.2], [0.9, 0.8, 0.7, 0.8, 0.2, 0.1]  # .1 three times up, three times down
    found = paired(old, new)["wilcoxon"]
    by_hand = stats.wilcoxon([1, 1, 1, -1, -1, -1])
    assert found["statistic"] == by_hand.statistic == 10.5
    assert found["p_value"] == by_hand.pvalue


def test_same_seed_same_interval() -> None:
    differences = np.subtract(AFTER, BEFORE)
    assert bootstrap_interval(differences, seed=1) == bootstrap_interval(differences, seed=1)
    assert bootstrap_interval(differences, seed=1) != bootstrap_interval(differences, seed=2)


SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None)
@given(SCORES)
def test_properties(pairs: list[tuple[float, float]]) -> None:
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    found = paired(first, second)
    low, high = found["interval_95"]
    assert low - 1e-9 <= found["mean_difference"] <= high + 1e-9
    assert found["wins"] + found["ties"] + found["losses"] == len(pairs)
    assert 0.0 <= found["wilcoxon"]["p_value"] <= 1.0
    back = paired(second, first)
    assert back["mean_difference"] == pytest.approx(-found["mean_difference"])
    assert (back["wins"], back["losses"]) == (found["losses"], found["wins"])
    json.dumps(found, allow_nan=False)


def test_size_of_d() -> None:
    assert cohens_d(np.array([0.0, 1.0, -1.0, 0.1]))[1] == "negligible"
    assert cohens_d(np.array([1.0, 1.1, 0.9]))[1] == "large"


def test_examples_to_settle_by_hand() -> None:
    # sd of (0, 0.2) is 0.1414, the mean 0.05 from the threshold: ratio 2.828; with z: ((1.960 + 0.842) 2.828)^2 = 62.8;
    # t(64) gives (1.998 + 0.847) 2.828 = 8.046 <= sqrt(65) = 8.062, t(63) 8.048 > sqrt(64) = 8
    assert examples_to_settle([0.0, 0.2], 0.05) == 65
    assert examples_to_settle([0.0, 0.1], 0.05) is None, "it stands on the threshold"
    assert examples_to_settle([0.5], 0.05) is None, "one example has no deviation"
    assert examples_to_settle([0.5, 0.5], 0.05) == 2


@pytest.mark.parametrize(("mean", "deviation"), [(0.10, 0.10), (0.08, 0.10), (0.0, 0.15), (0.02, 0.08)])
def test_as_many_examples_settle_it_four_times_of_five(mean: float, deviation: float) -> None:
    """Drawn anew with that mean and deviation, so many examples have an interval without the threshold in 80 %."""
    seen = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    seen = mean + deviation * (seen - seen.mean()) / seen.std(ddof=1)
    n = examples_to_settle(seen.tolist(), 0.05)
    assert n is not None
    generator = np.random.default_rng(0)
    draws = generator.normal(mean, deviation, (20_000, n))
    half = stats.t.ppf(0.975, n - 1) * draws.std(axis=1, ddof=1) / math.sqrt(n)
    settled = (np.abs(draws.mean(axis=1) - 0.05) > half).mean()
    assert 0.78 < settled < 0.86  # n is a whole number: a small one is up to one example too many


def constant(**means: float) -> dict[str, list[float]]:
    return {name: [mean] * 4 for name, mean in means.items()}


@pytest.mark.parametrize(
    ("m1", "m2", "m3", "rule", "winner"),
    [
        (0.72, 0.8535, 0.95, "adopt", "m3"),
        (0.72, 0.8535, 0.9035, "adopt", "m3"),  # exactly 5 points: counts as at least
        (0.72, 0.85, 0.90, "adopt", "m3"),  # both edges
        (0.72, 0.8535, 0.9034, "too_small", "m2"),
        (0.72, 0.93, 0.97, "too_small", "m2"),
        (0.72, 0.93, 0.93, "too_small", "m2"),
        (0.72, 0.93, 0.9299, "worse", "m2"),
        (0.72, 0.8535, 0.10, "worse", "m2"),
        (0.72, 0.80, 0.8999, "not_good_enough", "m2"),
        (0.72, 0.80, 0.85, "not_good_enough", "m2"),
    ],
)
def test_rules(m1: float, m2: float, m3: float, rule: str, winner: str) -> None:
    found = decide(constant(m1=m1, m2=m2, m3=m3), finetuned="m3", reference="m2", baseline="m1")
    assert (found["rule"], found["winner"], found["adopt"]) == (rule, winner, rule == "adopt")
    assert found["sentence"].startswith("Adopt m3" if rule == "adopt" else "Keep m2")
    assert any("m1 72.0%" in reason for reason in found["reasons"])
    assert any("m3 - m2" in reason for reason in found["reasons"])
    assert found["settled"]


@pytest.mark.parametrize(
    ("m1", "m3", "adopt"), [(0.0, 0.95, True), (0.85, 0.9, True), (0.86, 0.9, False), (0.5, 0.4, False)]
)
def test_two_models(m1: float, m3: float, adopt: bool) -> None:
    found = decide(constant(base=m1, tuned=m3), finetuned="tuned", reference="base", baseline="base")
    assert (found["adopt"], found["winner"]) == (adopt, "tuned" if adopt else "base")


def test_worse_shows_the_training_score() -> None:
    scores = constant(m2=0.9, m3=0.8)
    assert any(
        "99.0% on its training set" in r
        for r in decide(scores, finetuned="m3", reference="m2", train_score=0.99)["reasons"]
    )
    found = decide(scores, finetuned="m3", reference="m2", train_score=0.82)["reasons"]
    assert any("82.0% on its training set, hardly more than here, which speaks against it" in r for r in found)
    assert any("--train-set" in r for r in decide(scores, finetuned="m3", reference="m2")["reasons"])


def test_a_baseline_better_than_both_is_said() -> None:
    found = decide(constant(m1=0.99, m2=0.8, m3=0.95), finetuned="m3", reference="m2", baseline="m1")
    assert any("better than both" in reason for reason in found["reasons"])


def test_uncertainty_is_said() -> None:
    scores: dict[str, Any] = {"m2": [0.9, 0.7, 0.8, 0.9], "m3": [1.0, 1.0, 0.7, 1.0]}
    found = decide(scores, finetuned="m3", reference="m2")
    low, high = found["interval_95"]
    assert low <= 0.05 <= high
    assert not found["settled"]
    needed = found["examples_needed"]
    assert needed == examples_to_settle(np.subtract(scores["m3"], scores["m2"]).tolist(), 0.05) - 4
    assert any(f"about {needed} more validation examples" in reason for reason in found["reasons"])
    assert f"includes the threshold of 5: about {needed} more validation examples would settle it" in found["sentence"]
    certain = decide({"m2": [0.1, 0.2] * 10, "m3": [0.95, 1.0] * 10}, finetuned="m3", reference="m2")
    assert certain["settled"]
    assert certain["examples_needed"] is None
    assert certain["sentence"].endswith("against m2.")


def test_a_mean_on_the_threshold_and_one_example() -> None:
    found = decide({"m2": [0.9, 0.9], "m3": [0.9, 1.0]}, finetuned="m3", reference="m2")
    assert (found["rule"], found["settled"], found["examples_needed"]) == ("adopt", False, None)
    assert "no number of examples" in found["sentence"]
    found = decide({"m2": [0.5], "m3": [1.0]}, finetuned="m3", reference="m2")
    assert not found["settled"]
    assert "one example settles nothing" in found["sentence"]
