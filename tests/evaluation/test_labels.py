"""Answers that are labels, against scipy's Dice coefficient (which F1 is) and contingency table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import dice
from scipy.stats.contingency import crosstab

from rescoldo.evaluation.labels import classes_of, figures, labels_part
from rescoldo.evaluation.page import page
from rescoldo.evaluation.report import markdown
from rescoldo.role import get_role

GENERIC = get_role("generic")
CLASSES = ["a", "b", "c"]


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from([*CLASSES, "x"])), min_size=1, max_size=40))
def test_figures_are_scipys(pairs: list[tuple[str, str]]) -> None:
    wanted, said = ([pair[i] for pair in pairs] for i in (0, 1))
    found = figures(CLASSES, wanted, said)
    assert found["accuracy"] == pytest.approx(float(np.mean(np.array(wanted) == np.array(said))))
    each = []
    for row in found["classes"]:
        truth, given_ = (np.array([text == row["label"] for text in texts]) for texts in (wanted, said))
        each.append(1 - dice(truth, given_) if truth.any() or given_.any() else 0.0)
        assert row["f1"] == pytest.approx(each[-1])
        assert row["support"] == truth.sum()
    assert found["macro_f1"] == pytest.approx(np.mean(each))
    table = crosstab(wanted, said, levels=(CLASSES, [*CLASSES, "x"])).count
    assert [[*row["answers"], row["other"]] for row in found["confusion"]] == table.tolist()


def records(*labels: str) -> list[dict[str, Any]]:
    return [{"prompt": f"Which? {i}", "completion": label} for i, label in enumerate(labels)]


def test_labels_are_recognized() -> None:
    assert classes_of(GENERIC, records("yes", "no", "yes", " no")) == ["no", "yes"]
    assert classes_of(GENERIC, records("yes", "no", "perhaps")) == []  # each once
    assert classes_of(GENERIC, records("yes", "yes")) == []
    assert classes_of(GENERIC, records("a " * 40, "b", "b", "a " * 40)) == []
    assert classes_of(get_role("ba"), []) == []


def test_the_reports_have_them() -> None:
    asked = records("yes", "no", "yes", "<b>no</b>", "<b>no</b>", "no")
    texts = ["yes", "no", "no", "<think>\nHm.\n</think>\n\n<b>no</b>", "else", "no"]
    rows = [
        {
            "example": i, "repeat": 0, "concept": str(i), "text": text, "score": 1.0, "notes": [], "places": [],
            "ended": True, "tokens": 1, "diagnostics": {"concept_words_used": None, "longest_copied_run": None},
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    labels = labels_part(GENERIC, asked, rows)
    assert labels is not None
    assert labels["accuracy"] == pytest.approx(4 / 6)
    part = {
        "scores": dict.fromkeys(
            ("mean", "median", "std", "min", "max", "pass_rate_0.8", "pass_rate_0.9", "perfect_rate_1.0"), 0.5
        ),
        "component_scores": {},
        "diagnostics": {
            "ended": 6, "mean_tokens": 1.0, "concept_words_used": None, "longest_copied_run": None,
            "duplicate_descriptions": 0,
        },
        "predictions": rows,
        "labels": labels,
    }  # fmt: skip
    for lang, words in (("en", "macro F1"), ("es", "exhaustividad")):
        document = {"metadata": {"language": lang, "lang": lang}, "models": {"m": part}}
        for text in (markdown(document), page(document)):
            assert words in text
            assert "<b>no</b>" not in text
