"""Repetition, recitation, and answers that are about something else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.evaluation.diagnostics import (
    TrainingAnswers,
    answer_words,
    content_words,
    diagnose,
    duplicate_descriptions,
    input_words_used,
)
from rescoldo.role import get_role
from tests.data.examples import record

FORM = get_role("ba").form


def test_content_words() -> None:
    assert content_words("The clinics want to book 20 appointments for patients") == {
        "clinic",
        "book",
        "20",
        "appointment",
        "patient",
    }
    assert content_words("Una clínica quiere citas en línea para sus pacientes") == {
        "clinica",
        "cita",
        "linea",
        "paciente",
    }
    assert content_words("to be or not to be") == set()


def test_share_of_the_inputs_words() -> None:
    assert input_words_used("Clinic booking for patients", "patient: CLINICS") == pytest.approx(2 / 3)
    assert input_words_used("Clinic", "") == 0.0
    assert input_words_used("to be", "anything") is None


def test_duplicate_descriptions() -> None:
    items = "- id: FR001\n  description: Books.\n- description: books\n  id: x\n- description: Pays.\n- description:\n"
    text = "description: Whole thing.\nfr:\n" + items
    assert duplicate_descriptions(text, FORM) == 1


def test_scaffolding_is_no_copy() -> None:
    role = get_role("ba")
    first, second = role.target(record(1)), role.target(record(2))
    assert TrainingAnswers([first], FORM).longest_run(second) <= 2
    assert TrainingAnswers([second, first], FORM).longest_run(first) == len(answer_words(first, FORM))
    assert not {"id", "priority", "high", "fr001", "title"} & set(answer_words(f"```yaml\n{first}\n```", FORM)) - {"fr"}


def longest_by_hand(own: list[str], other: list[str]) -> int:
    best = 0
    for i in range(len(own)):
        for j in range(len(other)):
            n = 0
            while i + n < len(own) and j + n < len(other) and own[i + n] == other[j + n]:
                n += 1
            best = max(best, n)
    return best


WORDS = st.lists(st.sampled_from("abcd"), max_size=20).map(" ".join)


@settings(max_examples=100)
@given(WORDS, st.lists(WORDS, max_size=3))
def test_longest_run_is_the_longest(text: str, answers: list[str]) -> None:
    wanted = max((longest_by_hand(text.split(), answer.split()) for answer in answers), default=0)
    assert TrainingAnswers(answers, FORM).longest_run(text) == wanted


@settings(max_examples=50, deadline=2000)
@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text(concept: str, text: str) -> None:
    found = diagnose(concept, text, TrainingAnswers([concept], FORM), FORM)
    assert found["concept_words_used"] is None or 0 <= found["concept_words_used"] <= 1
    assert diagnose(concept, text, None, FORM)["longest_copied_run"] is None


def test_long_texts_do_not_hang() -> None:
    started = time.monotonic()
    for text in ("description: " + " " * 500_000, "- " * 300_000, "id:\n" * 100_000, "a" * 500_000, "a " * 300_000):
        diagnose("a concept", text, TrainingAnswers(["a b c", text], FORM), FORM)
    assert time.monotonic() - started < 10
