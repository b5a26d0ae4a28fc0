"""The named metrics by hand, ROUGE-L against the plain table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescoldo.role import get_role
from rescoldo.role.metrics import same_shape, structure
from rescoldo.role.rouge import common_subsequence, rouge_l

GENERIC = get_role("generic")


def by_table(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for one in first:
        before = row
        row = [0]
        for j, other in enumerate(second):
            row.append(before[j] + 1 if one == other else max(row[j], before[j + 1]))
    return row[-1]


LETTERS = st.lists(st.sampled_from("abcd"), max_size=80)


@given(LETTERS, LETTERS)
def test_common_subsequence_is_the_longest(first: list[str], second: list[str]) -> None:
    assert common_subsequence(first, second) == by_table(first, second)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "The cat sat.", 1.0),
        ("the cat sat", "the cat lay down", 4 / 7),
        ("a b", "c d", 0.0),
        ("", "a", 0.0),
        ("…", "!", 1.0),
        ("El niño cayó", "el nino cayo", 1.0),
    ],
)
def test_rouge_l_by_hand(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


def score(text: str, reference: str) -> dict[str, float]:
    return GENERIC.score(text, {"prompt": "p", "completion": reference}).components


def test_generic_by_hand() -> None:
    assert score(" two  words ", "two words") == {"exact_match": 1.0, "rouge_l": 1.0}
    assert score("words", "two words") == {"exact_match": 0.0, "rouge_l": pytest.approx(2 / 3)}
    reference = '{"city": "Madrid", "rivers": [{"name": "Manzanares"}]}'
    right = '{"city": "Porto", "rivers": [{"name": "Douro", "km": 897}, {"name": "Leça"}]}'
    assert score(right, reference)["valid"] == 1.0
    for wrong in ('{"city": "Porto"}', '{"city": "Porto", "rivers": [{"km": 1}]}', "Porto", '{"city": ', "[1]"):
        assert score(wrong, reference)["valid"] == 0.0
    assert score("title: a\nbody: b", "title: x\nbody: y")["valid"] == 1.0
    assert score("title: a", "title: x\nbody: y")["valid"] == 0.0
    assert "valid" not in score("anything", "Note: this is prose")


def test_without_an_answer_there_is_nothing_to_compare_with() -> None:
    assert GENERIC.needs_answers
    assert GENERIC.score("x", {"prompt": "p"}).components == {}
    assert not get_role("qa").needs_answers
    assert not get_role("ba").needs_answers


@given(st.text(max_size=200))
def test_a_text_has_its_own_shape(text: str) -> None:
    value = structure(text)
    assert value is None or same_shape(value, structure(text))
    own = GENERIC.score(text, {"prompt": "p", "completion": text}).components
    assert set(own.values()) <= {1.0}
