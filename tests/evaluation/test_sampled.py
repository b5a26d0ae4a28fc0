"""Several answers to each input: estimates against all subsets and Chen's formula, coverage by simulation, reports."""

from __future__ import annotations

import io
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import build_comparison, evaluate
from rescoldo.evaluation.evaluation import evaluate_model
from rescoldo.evaluation.page import page
from rescoldo.evaluation.report import markdown, print_comparison, print_evaluation
from rescoldo.evaluation.sampled import differences, expected_best, pass_at, sampled, sizes
from rescoldo.models.predictor import Prediction
from rescoldo.role import get_role
from tests.data.examples import record
from tests.evaluation.fake import Fake

ROLE = get_role("ba")
SAMPLES = 4


def rows(scores: np.ndarray) -> list[dict[str, Any]]:
    """(inputs, samples) scores as predictions."""
    return [{"example": i, "score": float(s)} for i, line in enumerate(scores) for s in line]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.data())
def test_the_best_of_k_is_the_mean_over_all_sets(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    assert expected_best(scores, k) == pytest.approx(statistics.fmean(map(max, combinations(scores, k))))


@pytest.mark.parametrize(("n", "c", "k"), [(10, 3, 1), (10, 3, 5), (200, 17, 100), (5, 0, 3), (5, 5, 5), (20, 19, 2)])
def test_pass_at_k_is_chens_estimator(n: int, c: int, k: int) -> None:
    """The numerically stable product of the paper's figure 3."""
    chen = 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
    assert pass_at([1.0] * c + [0.89] * (n - c), k, 0.9) == pytest.approx(chen)
    assert pass_at([1.0] * c + [0.89] * (n - c), k, 0.8) == 1.0


def test_the_sizes_and_what_cannot_be_estimated() -> None:
    assert [sizes(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    for k in (0, 3):
        with pytest.raises(ValueError, match="cannot be estimated"):
            expected_best([0.1, 0.2], k)
    assert sampled(rows(np.zeros((3, 1))), True) is None
    assert differences(rows(np.zeros((3, 1))), rows(np.zeros((3, 4)))) == []


@pytest.mark.parametrize("k", [1, 4])
def test_intervals_cover_the_truth_over_inputs_and_samples(k: int) -> None:
    """Inputs of very different difficulty, eight samples each: the interval of pass@k is that of new inputs, too."""
    generator = np.random.default_rng(5)
    truth = float(1 - stats.beta(0.5, 1.5).expect(lambda p: (1 - p) ** k))
    hits, too_narrow, estimates = 0, 0, []
    for _ in range(200):
        chances = generator.beta(0.5, 1.5, size=22)
        passed = (generator.random((22, 8)) < chances[:, None]).astype(float)
        found = sampled(rows(passed), True)
        assert found is not None
        figure = next(step for step in found["by_k"] if step["k"] == k)["pass"]["0.9"]
        low, high = figure["interval_95"]
        estimates.append(figure["mean"])
        hits += low <= truth <= high
        # what forgets that inputs differ: Wilson's over all answers, as if they were independent
        share, n = passed.mean(), passed.size
        width = 1.96 * float(np.sqrt(share * (1 - share) / n))
        too_narrow += k == 1 and not share - width <= truth <= share + width
    assert np.mean(estimates) == pytest.approx(truth, abs=0.02)
    assert hits >= 190
    assert k != 1 or too_narrow > 40, "such an interval misses far more often than 5 %"


def test_what_more_samples_would_take_away() -> None:
    generator = np.random.default_rng(1)
    alike = generator.random((40, 5))  # inputs do not differ: all of it is luck of the samples
    apart = np.repeat(generator.random((40, 1)), 5, axis=1)  # samples do not differ
    some = [sampled(rows(scores), True) for scores in (alike, apart)]
    assert some[0] is not None
    assert some[1] is not None
    assert some[0]["of_sampling"] > 0.6
    assert some[1]["of_sampling"] == 0.0
    assert some[0]["standard_error"] == pytest.approx(float(stats.sem(alike.mean(axis=1))))
    same = sampled(rows(np.ones((3, 2))), True)
    assert same is not None
    assert same["of_sampling"] is None
    low, high = same["by_k"][1]["best_of"]["interval_95"]
    assert low < 1.0 == high, "three inputs are no certainty"


class Lucky(Fake):
    """Right in a share of its samples, by seed and input."""

    def __init__(self, name: str, every: int) -> None:
        super().__init__()
        self.name, self.every = name, every

    def predict(self, records: Any, sampling: Any, on_progress: Any = None) -> Any:
        for index, found in super().predict(records, sampling, on_progress):
            wrong = Prediction("title: no", True, 2, 0.1)
            yield index, found if (sampling.seed + index) % self.every == 0 else wrong


def compared() -> dict[str, Any]:
    records, drawn = [record(i) for i in range(12)], Sampling(temperature=0.7, seed=0)
    models = {
        name: evaluate(Lucky(name, every), records, ROLE, drawn, repeats=SAMPLES)
        for name, every in (("base", 4), ("tuned", 2))
    }
    return build_comparison(models, baseline="base", finetuned="tuned")


def test_reports_have_it_in_both_languages() -> None:
    document = compared()
    base, tuned = (document["models"][name]["sampled"] for name in ("base", "tuned"))
    assert [step["k"] for step in base["by_k"]] == [1, 2, 4]
    assert base["by_k"][0]["pass"]["1.0"]["mean"] == pytest.approx(0.25)
    assert tuned["by_k"][1]["pass"]["1.0"]["mean"] == pytest.approx(5 / 6)
    assert base["by_k"][2]["pass"]["1.0"]["mean"] == 1.0
    assert base["selectable"]
    step = document["comparison"]["sampled"]["tuned - base"][1]
    assert step["k"] == 2
    assert step["pass"]["1.0"]["mean"] == pytest.approx(5 / 6 - 0.5)
    for lang, said in (("en", ("best of 4", "pass@2, score ≥ 0.9", "can choose the best")),
                       ("es", ("la mejor de 4", "pass@2, puntuación ≥ 0,9", "puede elegir con ella"))):  # fmt: skip
        document["metadata"] = {"lang": lang}
        screen = io.StringIO()
        print_comparison(document, Console(file=screen, width=200))
        for text in (markdown(document), page(document), screen.getvalue()):
            for words in said:
                assert words in text


def test_an_evaluation_of_one_model_has_it_too() -> None:
    document = compared()
    del document["comparison"]
    del document["models"]["base"]
    screen = io.StringIO()
    print_evaluation(document, Console(file=screen, width=200))
    for text in (markdown(document), page(document), screen.getvalue()):
        assert "best of 4" in text
        assert "tuned - base" not in text


def test_the_terminal_speaks_the_reports_language() -> None:
    document = compared()
    document["metadata"] = {"lang": "es"}
    screen = io.StringIO()
    print_comparison(document, Console(file=screen, width=250))
    text = screen.getvalue()
    for words in ("desviación típica", "terminó por sí sola", "diferencia", "victorias / empates / derrotas", "forma:"):
        assert words in text
    for words in ("standard deviation", "ended by itself", "wins / ties", "Keep", " answers ", " interval "):
        assert words not in text


def test_greedy_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RescoldoError, match="the same every time"):
        evaluate_model("sample:smollm2", tmp_path / "none.jsonl", samples=2)
    with pytest.raises(RescoldoError, match="--samples 0 is not allowed"):
        evaluate_model("sample:smollm2", tmp_path / "none.jsonl", samples=0)
