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

from rescoldo.evaluation.decision import decide
from rescoldo.evaluation.statistics import cohens_d, examples_to_settle, fewest_to_settle, mean_interval, paired

BEFORE = [0.5, 0.6, 0.55, 0.7, 0.4, 0.65, 0.8, 0.3, 0.45, 0.62]
AFTER = [0.7, 0.9, 0.61, 0.72, 0.85, 0.64, 0.97, 0.75, 0.81, 0.6]


def test_against_scipy() -> None:
    found = paired(BEFORE, AFTER)
    differences = np.subtract(AFTER, BEFORE)
    reference = stats.wilcoxon(AFTER, BEFORE)
    assert found["wilcoxon"]["statistic"] == reference.statistic
    assert found["wilcoxon"]["p_value"] == pytest.approx(reference.pvalue)
    assert found["cohens_d"] == pytest.approx(differences.mean() / differences.std(ddof=1))
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
    low, high = found["interval_95"]
    assert low < -0.8
    assert high == pytest.approx(-low)
    assert found["ties"] == 2


def test_all_differences_equal() -> None:
    found = paired([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    assert found["cohens_d"] is None
    assert "all differences equal" in found["cohens_d_note"]
    low, high = found["interval_95"]
    assert (low < 0.0, high) == (True, 1.0), "three examples are no proof, however equal they are"
    json.dumps(found, allow_nan=False)


def test_one_concept() -> None:
    found = paired([0.0], [1.0])
    assert found["interval_95"][0] < -0.9
    assert "one input only" in found["cohens_d_note"]


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], []), ([1.0], [1.0, 0.0])])
def test_not_paired(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="paired comparison"):
        paired(a, b)


@pytest.mark.parametrize(("a", "b"), [([0.1], [math.nan]), ([math.inf], [math.inf])])
def test_no_numbers(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        decide({"m1": a, "m3": b}, finetuned="m3", reference="m1")


def test_ties_in_rank_are_not_broken_by_rounding() -> None:
    old, new = [0.8, 0.7, 0.6, 0.9, 0.3, 0.2], [0.9, 0.8, 0.7, 0.8, 0.2, 0.1]  # .1 three times up, three times down
    found = paired(old, new)["wilcoxon"]
    by_hand = stats.wilcoxon([1, 1, 1, -1, -1, -1])
    assert found["statistic"] == by_hand.statistic == 10.5
    assert found["p_value"] == by_hand.pvalue


@pytest.mark.parametrize(("a", "b"), [([0.1], [1.2]), ([-0.1, 0.0], [0.5, 0.5])])
def test_scores_outside_their_bounds(a: list[float], b: list[float]) -> None:
    """The interval rests on the bounds: with others it would be wrong."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired(a, b)


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    found = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    return found.low, found.high


@pytest.mark.parametrize("n", [1, 2, 5, 10, 22, 98])
def test_interval_of_zeros_and_ones_is_near_the_exact_one(n: int) -> None:
    """-1 and 1 are a coin: no valid interval is much narrower than Clopper and Pearson's; ours is not much wider."""
    for k in {0, n // 2, n}:
        low, high = mean_interval(np.repeat([1.0, -1.0], [k, n - k]))
        exact = clopper_pearson(k, n)
        ours = ((low + 1) / 2, (high + 1) / 2)
        assert ours[0] <= exact[0] + 0.01
        assert ours[1] >= exact[1] - 0.01
        assert ours[1] - ours[0] < 1.75 * (exact[1] - exact[0])


@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 0.05, 1.0])
@pytest.mark.parametrize("n", [1, 2, 22, 1000])
def test_equal_differences_give_no_point(value: float, n: int) -> None:
    """What was never seen may still be: with a chance of 2.5 %, n draws miss a part of 1 - 0.025^(1/n)."""
    low, high = mean_interval(np.full(n, value))
    unseen = 1 - 0.025 ** (1 / n)
    assert low <= value - unseen * (value + 1) + 1e-9
    assert high >= value + unseen * (1 - value) - 1e-9
    assert -1 <= low < high <= 1


@pytest.mark.parametrize("n", [2, 5, 22])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_coverage_exactly(n: int, p: float) -> None:
    """Of a coin the coverage is a finite sum."""
    held = 0.0
    for k in range(n + 1):
        low, high = mean_interval(np.repeat([1.0, 0.0], [k, n - k]))
        held += float(stats.binom.pmf(k, n, p)) * (low <= p <= high)
    assert held >= 0.95


def test_interval_narrows_as_the_spread_does() -> None:
    generator = np.random.default_rng(0)
    draws = generator.uniform(-1, 1, 98)
    widths = [float(np.subtract(*mean_interval(0.2 + s * draws)[::-1])) for s in (0.0, 0.05, 0.2, 0.8)]
    assert widths == sorted(widths)
    assert widths[-1] > 3 * widths[0]
    half = stats.t.ppf(0.975, 97) * (0.8 * draws).std(ddof=1) / math.sqrt(98)
    assert 2 * half < widths[-1] < 2 * 2 * half, "up to twice Student's: the price of assuming nothing"


def test_order_does_not_matter() -> None:
    differences = np.subtract(AFTER, BEFORE)
    assert mean_interval(differences) == pytest.approx(mean_interval(differences[::-1]))
    low, high = mean_interval(-differences)
    assert (-high, -low) == pytest.approx(mean_interval(differences))


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
    assert examples_to_settle([0.0, 0.1], 0.05) is None, "it stands on the threshold"
    assert examples_to_settle([0.5], 0.05) is None, "one example has no deviation"
    # all equal: exactly where the interval of so many equal differences excludes the threshold
    n = examples_to_settle([0.5, 0.5], 0.05)
    assert n is not None
    assert mean_interval(np.full(n, 0.5))[0] > 0.05 >= mean_interval(np.full(n - 1, 0.5))[0]
    assert fewest_to_settle(0.05) == 6
    assert mean_interval(-np.ones(6))[1] < 0.05 < mean_interval(-np.ones(5))[1]


@pytest.mark.parametrize(
    "seen",
    [
        [0.0, 0.1, 0.2, 0.3],
        [-0.1, 0.0, 0.1, -0.2, 0.0],
        [0.0, 1.0],
        [0.0] * 9 + [1.0],
        [-1.0, 0.5, 0.6, 0.7, 0.8],
    ],
)
def test_as_many_examples_settle_it_four_times_of_five(seen: list[float]) -> None:
    """Drawn anew from what was seen, so many examples have an interval without the threshold in 80 %."""
    n = examples_to_settle(seen, 0.05)
    assert n is not None
    generator = np.random.default_rng(0)
    draws = generator.choice(seen, (400, n))
    settled = np.mean([not low <= 0.05 <= high for low, high in map(mean_interval, draws)])
    assert 0.72 < settled < 0.95  # n is a whole number, and counts of a coin are too


def constant(**means: float) -> dict[str, list[float]]:
    return {name: [mean] * 400 for name, mean in means.items()}


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
    low, high = found["interval_95"]
    assert low < m3 - m2 < high
    assert found["settled"] == (not low <= 0.05 <= high)


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
    assert "4 examples are too few: with fewer than 6 no result could settle it" in found["sentence"]
    assert f"includes the threshold of 5: about {needed} more validation examples would settle it" in found["sentence"]
    certain = decide({"m2": [0.1, 0.2] * 10, "m3": [0.95, 1.0] * 10}, finetuned="m3", reference="m2")
    assert certain["settled"]
    assert certain["examples_needed"] is None
    assert certain["sentence"].endswith("against m2.")


def test_a_mean_on_the_threshold_and_one_example() -> None:
    found = decide({"m2": [0.9, 0.9], "m3": [0.9, 1.0]}, finetuned="m3", reference="m2")
    assert (found["rule"], found["settled"], found["examples_needed"]) == ("adopt", False, None)
    assert "no practicable number of examples" in found["sentence"]
    found = decide({"m2": [0.5], "m3": [1.0]}, finetuned="m3", reference="m2")
    assert not found["settled"]
    assert "one example settles nothing" in found["sentence"]


def test_equal_differences_of_few_examples_settle_nothing() -> None:
    """Five answers of 0 and 1 each: the means are as far apart as they can be, and it may still be luck."""
    found = decide({"m2": [0.0] * 5, "m3": [1.0] * 5}, finetuned="m3", reference="m2")
    assert (found["adopt"], found["settled"]) == (True, False)
    assert "too few" in found["sentence"]
    found = decide({"m2": [0.0] * 22, "m3": [1.0] * 22}, finetuned="m3", reference="m2")
    assert (found["settled"], found["interval_95"][1]) == (True, 1.0)
    assert 0.5 < found["interval_95"][0] < 0.7
