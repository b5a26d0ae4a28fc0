"""Intervals and agreement against scipy and krippendorff's package, and against what they promise."""

from __future__ import annotations

import math
import random

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rescoldo.preference.statistics import krippendorff_alpha, summarise, wilson


@given(st.integers(1, 400), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_is_known_without_votes() -> None:
    found = summarise("a", "b", {})
    assert (found["win_rate"], found["interval"], found["settled"], found["more_votes"]) == (0.5, [0, 1], False, None)


UNITS = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=3, max_size=3), min_size=2, max_size=12)


@settings(max_examples=150)
@given(UNITS)
def test_alpha_is_the_packages(table: list[list[float | None]]) -> None:
    ours = krippendorff_alpha([[value for value in unit if value is not None] for unit in table])
    data = np.array([[np.nan if value is None else value for value in unit] for unit in table]).T
    pairable = [value for unit in table if len(found := [v for v in unit if v is not None]) > 1 for value in found]
    if len(set(pairable)) < 2:
        assert ours is None
    else:
        theirs = krippendorff.alpha(data, level_of_measurement="ordinal", value_domain=[0.0, 0.5, 1.0])
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_alpha_of_a_known_example() -> None:
    """Nominal and ordinal are the same for two values; figures by hand from Krippendorff (2011), section B."""
    first = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    second = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(list(zip(first, second, strict=True))) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha([[1.0, 1.0], [0.0, 0.0]]) == 1


@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.7, 0.0), (0.35, 0.5), (0.8, 0.15)])
def test_the_interval_covers_the_truth(win: float, tie: float) -> None:
    """Also where ties are halves, and where several votes on one input agree with each other entirely."""
    draw, covered, runs = random.Random(7), 0, 600
    truth = win + tie / 2
    for _ in range(runs):
        outcomes = {}
        for place in range(40):
            chance = draw.random()
            outcomes[place] = [1.0 if chance < win else 0.5 if chance < win + tie else 0.0] * 3
        low, high = summarise("a", "b", outcomes)["interval"]
        covered += low <= truth <= high
    assert covered / runs > 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(14, 8, 0), (9, 5, 8), (3, 1, 0)])
def test_as_many_more_votes_would_settle_it(wins: int, losses: int, ties: int) -> None:
    """With a chance of about 80 %, if what was seen is the truth."""
    seen = [1.0] * wins + [0.0] * losses + [0.5] * ties
    found = summarise("a", "b", {place: [value] for place, value in enumerate(seen)})
    assert not found["settled"]
    total = len(seen) + found["more_votes"]
    draw, runs = random.Random(1), 400
    settled = [
        summarise("a", "b", {place: [draw.choice(seen)] for place in range(total)})["interval"][0] > 0.5
        for _ in range(runs)
    ]
    assert 0.7 < sum(settled) / runs < 0.93


def test_an_input_counts_once() -> None:
    found = summarise("a", "b", {0: [1, 1, 0], 1: [0, 0.5], 2: [1, 0], 3: [0.5]})
    assert (found["wins"], found["losses"], found["ties"], found["win_rate"]) == (1, 1, 2, 0.5)
    assert found["more_votes"] is None, "nothing points to either"
    clear = summarise("a", "b", {place: [1.0] for place in range(10)})
    assert (clear["settled"], clear["more_votes"]) == (True, 0)
