"""From predictions to the documents: scores, cache, resumption, comparison, reports."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import build_comparison, evaluate, write_document
from rescoldo.evaluation.diagnostics import TrainingAnswers
from rescoldo.evaluation.document import checked_output, partial_cache
from rescoldo.evaluation.page import page
from rescoldo.evaluation.report import markdown, print_comparison, print_evaluation
from rescoldo.evaluation.score import answers_use_input, doubts, score_row, summarise
from rescoldo.models.cache import PredictionCache, key
from rescoldo.models.predictor import Prediction
from rescoldo.role import Role, get_role
from rescoldo.role.ba import COMPONENTS
from tests.data.examples import record
from tests.evaluation.fake import ROLE, Fake
from tests.role.test_roles import role_file

RECORDS = [record(i) for i in range(6)]
GREEDY = Sampling()


OTHER = {
    **RECORDS[0]["requirements"],
    "title": "Zebra crossing lights",
    "description": "Zebra crossing lights " * 6,
    **{
        name: [{**item, "description": "Zebra crossing lights blink"} for item in RECORDS[0]["requirements"][name]]
        for name in ("functional_requirements", "non_functional_requirements", "constraints")
    },
}


def broken(index: int, prediction: Prediction) -> Prediction:
    """Row 0 is no YAML, row 1 is cut off, row 2 failed."""
    return {
        0: replace(prediction, text="Sure, here it is."),
        1: replace(prediction, text=prediction.text.replace("FR001", "FR01", 1), ended=False),
        2: Prediction("", False, 0, 0.0, error="the server hung up"),
    }.get(index, prediction)


def test_perfect_model() -> None:
    part = evaluate(Fake(), RECORDS, ROLE, GREEDY)
    assert part["scores"] == {
        "mean": 1.0,
        "median": 1.0,
        "std": 0.0,
        "min": 1.0,
        "max": 1.0,
        "pass_rate_0.8": 1.0,
        "pass_rate_0.9": 1.0,
        "perfect_rate_1.0": 1.0,
    }
    assert part["component_scores"] == dict.fromkeys(COMPONENTS, 1.0)
    assert [row["concept"] for row in part["predictions"]] == [one["concept"] for one in RECORDS]
    assert set(part["predictions"][0]) == {
        *(
            "example",
            "repeat",
            "concept",
            "text",
            "score",
            "components",
            "notes",
            "places",
            "messages",
            "ended",
            "tokens",
            "seconds",
        ),
        *("diagnostics", "key"),
    }
    assert part["warnings"] == []
    json.dumps(part, allow_nan=False)


def test_set_by_hand() -> None:
    part = evaluate(Fake(broken), RECORDS, ROLE, GREEDY, training=TrainingAnswers([ROLE.target(RECORDS[5])], ROLE.form))
    one_id = (6 + 8 / 9) / 7
    totals = [0.0, one_id, 0.0, 1.0, 1.0, 1.0]
    assert [row["score"] for row in part["predictions"]] == pytest.approx(totals)
    assert part["scores"]["mean"] == pytest.approx(sum(totals) / 6)
    assert part["scores"]["median"] == pytest.approx((one_id + 1) / 2)
    assert part["scores"]["pass_rate_0.9"] == pytest.approx(4 / 6)
    assert part["scores"]["perfect_rate_1.0"] == 0.5
    assert part["component_scores"]["id_format"] == pytest.approx((8 / 9 + 3) / 6)
    assert part["predictions"][2]["error"] == "the server hung up"
    assert "cut off after 10 tokens" in part["predictions"][1]["notes"]
    assert part["diagnostics"]["ended"] == 4
    assert part["diagnostics"]["answers_copying"] == 1
    assert [w.split(" of ")[0] for w in part["warnings"]] == ["1", "1", "1", "1"]
    json.dumps(part, allow_nan=False)


def answered(role: Role, records: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """The document's part of a model that answers with `texts`."""
    use = answers_use_input(role, records)
    pairs = zip(records, texts, strict=True)
    rows = [score_row(role, one, Prediction(text, True, 1, 0.1), None, use_input=use) for one, text in pairs]
    return summarise([{**row, "example": i, "repeat": 0} for i, row in enumerate(rows)])


def test_a_metric_that_fails_is_warned_of(tmp_path: Path) -> None:
    role_file(tmp_path, metric=["exact_match", "m.py:right"])
    (tmp_path / "m.py").write_text("def right(prediction, record):\n    return 1 / len(prediction)\n")
    records = [{"question": "a", "reply": "x"}] * 3
    part = answered(get_role(str(tmp_path)), records, ["x", "", ""])
    warning = "failed on 2 of 3 answers (ZeroDivisionError: division by zero, m.py:2); it counts as 0 there"
    assert part["warnings"] == [f"the metric `right` {warning}"]
    assert part["component_scores"]["right"] == pytest.approx(1 / 3)
    document = {"metadata": {}, "models": {"a": {"spec": "", **part}}}
    screen = io.StringIO()
    print_evaluation(document, Console(file=screen, width=300))
    for shown in (screen.getvalue(), page(document), markdown(document).replace("\\", "")):
        assert warning in shown


def test_labels_do_not_ignore_their_input(tmp_path: Path) -> None:
    role = get_role(str(role_file(tmp_path)))
    labels = [{"question": f"The printer in room {i} burns", "reply": "hardware"} for i in range(3)]
    part = answered(role, labels, ["hardware", "hardware", "printer"])
    assert part["warnings"] == []
    assert part["diagnostics"]["concept_words_used"] is None
    assert [doubts(row) for row in part["predictions"]] == [[], [], []]
    prose = [{**one, "reply": one["question"].replace("burns", "is on fire")} for one in labels]
    part = answered(role, prose, ["hardware", "the printer in room 1", "room"])
    assert part["warnings"] == ["1 of 3 answers use less than 20% of their input's words"]
    assert doubts(part["predictions"][0]) == ["ignoring the input"]
    assert answers_use_input(role, [{"question": "without an answer"}])


def test_nothing_to_evaluate() -> None:
    with pytest.raises(RescoldoError, match="no records"):
        evaluate(Fake(), [], ROLE, GREEDY)


def test_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    first, second = Fake(stop_after=4), Fake()
    with pytest.raises(KeyboardInterrupt), partial_cache(output) as cache:
        evaluate(first, RECORDS, ROLE, GREEDY, cache=cache)
    partial = tmp_path / "out.json.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 4
    with partial_cache(output) as cache:
        part = evaluate(second, RECORDS, ROLE, GREEDY, cache=cache)
    assert not partial.exists()
    assert sorted(first.asked + second.asked) == sorted(one["concept"] for one in RECORDS)
    assert part == evaluate(Fake(), RECORDS, ROLE, GREEDY)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\n",
        b"{",
        b'{"key": "a", "prediction": {"text"',
        b"\xff\0",
        b"[1]\n",
        b"{}\n",
        b'{"key": 1, "prediction": {"x": 2}}',
        b'{"key":"a","prediction":{"text":1,"ended":1,"tokens":"","seconds":null}}',
        b'{"key":"a","prediction":{"text":"","ended":true,"tokens":1,"seconds":NaN}}',
    ],
)
def test_damaged_cache_lines_are_not_there(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "c.jsonl"
    cache = PredictionCache(path)
    cache.put("k1", Prediction("one\nline", True, 3, 0.5))
    with path.open("ab") as file:
        file.write(damage)
    cache = PredictionCache(path)
    assert cache.get("k1") == Prediction("one\nline", True, 3, 0.5)
    assert cache.get("a") is None
    cache.put("k2", Prediction("two \ud800", False, 3, 0.5))
    again = PredictionCache(path)
    assert again.get("k1")
    assert again.get("k2") == Prediction("two \ud800", False, 3, 0.5)


@pytest.mark.parametrize("content", ['{"models": [1]}', '"models"', "models"])
def test_what_is_no_evaluation_is_not_overwritten(tmp_path: Path, content: str) -> None:
    output, dataset = tmp_path / "README.json", tmp_path / "d.jsonl"
    report = tmp_path / "README.md"
    report.write_text("mine")
    with pytest.raises(RescoldoError, match=r"would overwrite .*README\.md"):
        checked_output(output, dataset)
    output.write_text(content)
    with pytest.raises(RescoldoError, match="is no evaluation"):
        checked_output(output, dataset)
    assert (output.read_text(), report.read_text()) == (content, "mine")
    write_document({"metadata": {}, "models": {"m": evaluate(Fake(), RECORDS, ROLE, GREEDY)}}, output)
    assert checked_output(output, dataset) == output, "its reports are its own"


def test_a_device_is_not_read_for_ever() -> None:
    with pytest.raises(RescoldoError, match="is no evaluation"):
        checked_output(Path("/dev/zero"), Path("d.jsonl"))


def test_answers_are_reused_without_an_output(tmp_path: Path) -> None:
    part = evaluate(Fake(), RECORDS, ROLE, GREEDY)
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"models": {"m": part}}))
    again = Fake()
    with partial_cache(None, [earlier]) as cache:
        evaluate(again, [*RECORDS, record(6)], ROLE, GREEDY, cache=cache)
    assert again.asked == [record(6)["concept"]]
    assert list(tmp_path.iterdir()) == [earlier]


WHOLE = {"key": "k", "text": "", "ended": True, "tokens": 1, "seconds": 1}


def test_answers_of_an_earlier_document_are_known(tmp_path: Path) -> None:
    def edit(index: int, prediction: Prediction) -> Prediction:
        fields = RECORDS[index]["requirements"] if index == 1 else None
        return replace(broken(index, prediction), fields=fields)

    part = evaluate(Fake(edit), RECORDS, ROLE, GREEDY)
    document = json.loads(json.dumps({"models": {"a": part}}))
    cache = PredictionCache(tmp_path / "c.jsonl")
    cache.reuse(document)
    again = Fake()
    assert evaluate(again, RECORDS, ROLE, GREEDY, cache=cache)["predictions"][1] == part["predictions"][1]
    assert again.asked == [RECORDS[2]["concept"]], "what failed is asked again"


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"models": 1}, {"models": {"a": 1}}, {"models": {"a": {"predictions": 1}}},
        {"models": {"a": {"predictions": [1, {}, {"key": 1}, {**WHOLE, "text": 1}, {**WHOLE, "fields": 1}]}}},
    ],
)  # fmt: skip
def test_damaged_documents_hold_no_answers(tmp_path: Path, document: Any) -> None:
    cache = PredictionCache(tmp_path / "c.jsonl")
    cache.reuse(document)
    assert cache.get("k") is None


def test_failures_are_asked_again(tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path / "c.jsonl")
    evaluate(Fake(broken), RECORDS, ROLE, GREEDY, cache=cache)
    again = Fake()
    evaluate(again, RECORDS, ROLE, GREEDY, cache=PredictionCache(tmp_path / "c.jsonl"))
    assert again.asked == [RECORDS[2]["concept"]]


def test_key_changes_with_everything_that_decides_the_answer() -> None:
    keys = {
        key("m", "p", GREEDY),
        key("n", "p", GREEDY),
        key("m", "q", GREEDY),
        key("m", "p", Sampling(temperature=0.7)),
        key("m", "p", Sampling(seed=1)),
        key("m", "p", Sampling(max_new_tokens=5)),
        key("m", "p\ud800", GREEDY),
    }
    assert len(keys) == 7


def parts() -> dict[str, Any]:
    def worse(index: int, prediction: Prediction) -> Prediction:
        return replace(prediction, text="no") if index < 3 else prediction

    models = {
        "base": evaluate(Fake(broken), RECORDS, ROLE, GREEDY),
        "prompt": evaluate(Fake(worse), RECORDS, ROLE, GREEDY),
    }
    return {**models, "tuned": evaluate(Fake(), RECORDS, ROLE, GREEDY)}


def test_comparison() -> None:
    document = build_comparison(parts(), baseline="base", optimized="prompt", finetuned="tuned")
    comparison = document["comparison"]
    assert [(row["rank"], row["model"]) for row in comparison["ranking"]] == [(1, "tuned"), (2, "base"), (3, "prompt")]
    base = document["models"]["base"]["scores"]["mean"]
    assert comparison["ranking"][0]["difference_to_baseline"] == pytest.approx(1 - base)
    assert list(comparison["statistical_tests"]) == ["prompt - base", "tuned - base", "tuned - prompt"]
    test = comparison["statistical_tests"]["tuned - prompt"]
    assert test["mean_difference"] == 0.5
    assert (test["wins"], test["ties"]) == (3, 3)
    assert comparison["effect_sizes"]["tuned - prompt"]["cohens_d"] == pytest.approx(0.5 / 0.3**0.5)
    assert comparison["decision"]["adopt"]
    assert comparison["decision"]["winner"] == "tuned"
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    "edit",
    [
        lambda i, p: replace(p, ended=i > 2),
        lambda i, p: replace(p, text=ROLE.target({**RECORDS[i], "requirements": OTHER})),
    ],
    ids=["cut off", "ignoring the input"],
)
def test_a_decision_by_doubtful_answers_is_warned_of(edit: Any) -> None:
    models = {**parts(), "tuned": evaluate(Fake(edit), RECORDS, ROLE, GREEDY)}
    decision = build_comparison(models, baseline="base", finetuned="tuned")["comparison"]["decision"]
    (warning,) = decision["warnings"]
    assert decision["adopt"]
    assert "and the decision would be to keep base" in warning
    text = markdown(build_comparison(models, baseline="base", finetuned="tuned"))
    assert "read those answers" in text
    certain = build_comparison(parts(), baseline="base", finetuned="tuned")
    assert certain["comparison"]["decision"]["warnings"] == []


def test_comparison_of_two_and_without_decision() -> None:
    two = {name: part for name, part in parts().items() if name != "prompt"}
    assert build_comparison(two, baseline="base", finetuned="tuned")["comparison"]["decision"]["adopt"]
    assert build_comparison(two, baseline="base")["comparison"]["decision"] is None


def test_comparisons_that_make_no_sense() -> None:
    models = parts()
    with pytest.raises(RescoldoError, match="two models"):
        build_comparison({"base": models["base"]}, baseline="base")
    with pytest.raises(RescoldoError, match="no model 'x'"):
        build_comparison(models, baseline="x")
    other = evaluate(Fake(), RECORDS[:5], ROLE, GREEDY)
    with pytest.raises(RescoldoError, match="different inputs"):
        build_comparison({**models, "tuned": other}, baseline="base")
    models["tuned"]["predictions"][0]["score"] = float("nan")
    with pytest.raises(RescoldoError, match="tuned has a score that is NaN"):
        build_comparison(models, baseline="base", finetuned="tuned")


def test_reports(tmp_path: Path) -> None:
    models = parts()
    models["tuned"]["predictions"][0]["concept"] = "a | b <script> *c*\n# d"
    models["base"]["predictions"][0]["concept"] = models["prompt"]["predictions"][0]["concept"] = (
        "a | b <script> *c*\n# d"
    )
    document = build_comparison(models, baseline="base", optimized="prompt", finetuned="tuned")
    text = markdown(document)
    assert text.splitlines()[2].startswith("**Keep prompt for now: tuned has learned the form")
    assert "<script>" not in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    tables = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(tables) == {5, 7}
    assert "| 1 | tuned | 100.0% | +" in text
    screen = io.StringIO()
    print_comparison(document, Console(file=screen, width=100))
    assert "tuned has learned the form" in screen.getvalue()
    assert "tuned - prompt" in screen.getvalue()
    assert write_document(document, tmp_path / "c.json") == [tmp_path / "c.md", tmp_path / "c.html"]
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads(json.dumps(document))
    (tmp_path / "file").write_text("")
    with pytest.raises(RescoldoError, match="cannot be written"):
        write_document(document, tmp_path / "file" / "c.json")
