"""Answers held against the dataset's own, and models whose verdict is known before they are looked at."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rescoldo.data import read_records
from rescoldo.engine.types import Sampling
from rescoldo.evaluation import build_comparison, evaluate, write_document
from rescoldo.evaluation.content import MARGIN, measure_content, outside, ranges_of
from rescoldo.evaluation.diagnostics import TrainingAnswers
from rescoldo.evaluation.measures import (
    MEASURES,
    Content,
    KnownPairs,
    content_of,
    figures,
    measure,
    names,
    repeats,
    shared_items,
)
from rescoldo.evaluation.statistics import fisher_greater, wilson
from rescoldo.evaluation.verdict import with_verdict
from rescoldo.models.predictor import Prediction
from rescoldo.role import Role, get_role
from rescoldo.words import words
from tests.evaluation.fake import ROLE, Fake

SYNTHETIC = Path(__file__).parents[2] / "artifacts" / "synthetic"
LISTS = ("functional_requirements", "non_functional_requirements", "constraints")


@cache
def records(name: str) -> tuple[dict[str, Any], ...]:
    return tuple(read_records(SYNTHETIC / f"ba_{name}_v2_fixed.jsonl", ROLE))


@cache
def training() -> TrainingAnswers:
    return TrainingAnswers([ROLE.target(record) for record in records("train")], ROLE.form)


# Models, by what they answer to the i-th concept of the validation set.


def reference(i: int) -> dict[str, Any]:
    return dict(records("val")[i]["requirements"])


def other_concept(i: int) -> dict[str, Any]:
    return reference((i + 7) % len(records("val")))


def repeating(i: int) -> dict[str, Any]:
    """Its own first item, over and over."""
    answer = reference(i)
    for name in LISTS:
        answer[name] = [{**item, "description": answer[name][0]["description"]} for item in answer[name]]
    return answer


def nearly_repeating(i: int) -> dict[str, Any]:
    """The same item with another number in it."""
    answer = reference(i)
    for name in LISTS:
        first = answer[name][0]["description"]
        answer[name] = [{**item, "description": f"{first} {n}"} for n, item in enumerate(answer[name])]
    return answer


def recited(i: int) -> dict[str, Any]:
    return dict(records("train")[i]["requirements"])


def empty(i: int) -> dict[str, Any]:
    """Perfect form, and nothing in it that depends on the concept."""
    texts = ["The system must work well.", "It has to be easy to use.", "It must be fast.", "It shall be secure."]
    answer: dict[str, Any] = {
        "title": "A new software system",
        "description": "A system for people who want to do their work with software, so that the work gets done in a "
        "better way than it was done before.",
    }
    for name, prefix in zip(LISTS, ("FR", "NFR", "C"), strict=True):
        answer[name] = [
            {"id": f"{prefix}{n:03d}", "description": text, "priority": "High"} for n, text in enumerate(texts, 1)
        ]
    return answer


def parrot(i: int) -> dict[str, Any]:
    """Perfect form around the concept itself."""
    concept = records("val")[i]["concept"]
    answer = empty(i)
    answer["description"] = f"{concept} {answer['description']}"
    answer["functional_requirements"][0]["description"] = f"The system must do this: {concept}"
    return answer


def changed(answer: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The answer with each text for a reader changed, its form kept."""
    texts = {name: change(answer[name]) for name in ("title", "description")}
    items = {name: [{**one, "description": change(one["description"])} for one in answer[name]] for name in LISTS}
    return {**answer, **texts, **items}


def word_salad(i: int) -> dict[str, Any]:
    """The right answer's own words, in any order."""
    drawn = random.Random(i)
    return changed(reference(i), lambda text: " ".join(drawn.sample(text.split(), len(text.split()))))


def another_language(i: int) -> dict[str, Any]:
    """As a translation looks to who counts words: other words, with the figures and names of the right answer."""

    def word(found: re.Match[str]) -> str:
        drawn = random.Random(found[0])
        return found[0] if found[0][0].isupper() else "".join(drawn.choice(SYLLABLES) for _ in found[0][::3])

    return changed(reference(i), lambda text: re.sub(r"[^\W\d_]+", word, text))


def own_heading(i: int) -> dict[str, Any]:
    """Title and introduction of the right answer, and another concept's items."""
    return {**reference(i), **{name: other_concept(i)[name] for name in LISTS}}


def always_the_same(i: int) -> dict[str, Any]:
    """One training answer, whatever is asked."""
    return recited(3)


def to_be_defined(i: int) -> dict[str, Any]:
    """Nothing in it, and as many items as in the right answer."""
    return changed(reference(i), lambda text: ("To be defined later on, " * 9)[: max(20, len(text))].strip(", "))


def keywords(i: int) -> dict[str, Any]:
    """The concept's words, put into one phrase."""
    drawn, answer = random.Random(i), empty(i)
    found = sorted({word for word in words(records("val")[i]["concept"]) if len(word) > 3})
    drawn.shuffle(found)
    answer["description"] = (
        f"It has to do with {', '.join(found)} and with all that belongs to it in some way or other."
    )
    items = [one for name in LISTS for one in answer[name]]
    for n, one in enumerate(items):
        one["description"] = f"It must handle {found[n % len(found)]} and {found[(n + 5) % len(found)]} well."
    return answer


def prompt_itself(i: int) -> dict[str, Any]:
    """The lines of the prompt as requirements."""
    lines = [line for line in ROLE.messages(records("val")[i])[0]["content"].split("\n")[:-1] if len(line) > 20]
    answer = empty(i)
    for n, one in enumerate(one for name in LISTS for one in answer[name]):
        one["description"] = lines[n % len(lines)]
    return answer


def cut_short(i: int) -> dict[str, Any]:
    """The right answer's first two items of each list, in six words each."""
    answer = reference(i)
    for name in LISTS:
        answer[name] = [{**one, "description": " ".join(one["description"].split()[:6])} for one in answer[name][:2]]
    return answer


def no_longer_true(i: int) -> dict[str, Any]:
    """The right answer, with the opposite said."""
    return changed(reference(i), lambda text: re.sub(r"\b(must|is|can|are|has)\b", r"\1 not", text))


def in_the_wrong_lists(i: int) -> dict[str, Any]:
    """The right answer's items, each list under another heading."""
    answer, lists = reference(i), [reference(i)[name] for name in LISTS]
    for name, prefix, items in zip(LISTS, ("FR", "NFR", "C"), [lists[1], lists[2], lists[0]], strict=True):
        answer[name] = [{**one, "id": f"{prefix}{n:03d}"} for n, one in enumerate(items, 1)]
    return answer


SYLLABLES = ("la", "mo", "ri", "te", "co", "na", "lu", "ser", "por", "ción")
BAD = [other_concept, repeating, nearly_repeating, recited, empty, parrot, word_salad, another_language, own_heading,
       always_the_same, to_be_defined, keywords, prompt_itself, cut_short]  # fmt: skip
Answering = Callable[[int], dict[str, Any]]


@cache
def measured_parts(*models: Answering | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    parts = {f"{i}": answered(model) for i, model in enumerate(models)}
    return measure_content(parts, ROLE, records("val"), training=training(), training_records=records("train"))


@cache
def answered(answer: Answering | None, name: str = "") -> dict[str, Any]:
    """A model's part of the document; None: one without form."""

    def edit(index: int, prediction: Prediction) -> Prediction:
        text = "I would rather not." if answer is None else ROLE.target({"requirements": answer(index)})
        return Prediction(text, True, 100, 1.0)

    return evaluate(Fake(edit), list(records("val")), ROLE, Sampling(), training=training())


def compared(finetuned: Answering | None, base: Answering | None = None, **evidence: Any) -> dict[str, Any]:
    parts, found = measured_parts(base, finetuned)
    models = dict(zip(("base", "finetuned"), parts.values(), strict=True))
    return build_comparison(models, baseline="base", finetuned="finetuned", reference=found, **evidence)


def votes(wins: int, losses: int, ties: int = 0, a: str = "finetuned", b: str = "base") -> dict[str, Any]:
    n = wins + losses + ties
    low, high = wilson(wins + ties / 2, n)
    pair = {"a": a, "b": b, "wins": wins, "losses": losses, "ties": ties, "win_rate": (wins + ties / 2) / n}
    settled = low > 0.5 or high < 0.5
    return {**pair, "interval": [low, high], "settled": settled, "more_votes": None if settled else 40}


def people(*pairs: dict[str, Any]) -> dict[str, Any]:
    count = sum(pair["wins"] + pair["losses"] + pair["ties"] for pair in pairs)
    return {"reviewers": 1, "votes": count, "pairs": list(pairs), "agreement": {"alpha": None, "items": 0}}


def judge(*pairs: dict[str, Any], passed: bool = True) -> dict[str, Any]:
    exam = {"accuracy": 0.97 if passed else 0.5, "interval": [0.9, 0.99], "n": 88, "passed": passed, "by_damage": {}}
    bias = {"rate": 0.02, "interval": [0.0, 0.1]}
    return {"model": "openai:j@http://x/v1", "exam": exam, "position_bias": bias, "self_preference": None,
            "pairs": list(pairs)}  # fmt: skip


def alone(role: Role, question: str, text: str) -> dict[str, float | None]:
    return measure(role, question, text, content_of(role, text))


def decision(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["comparison"]["decision"]
    return found


@pytest.mark.parametrize("bad", BAD, ids=lambda model: model.__name__)
def test_form_without_content_is_doubtful(bad: Answering) -> None:
    found = decision(compared(bad))
    assert (found["adopt"], found["winner"], found["rule"]) == (True, "finetuned", "adopt"), "the rule speaks of form"
    assert found["verdict_code"] == "content_doubtful"
    assert found["verdict"].startswith("Keep base for now: finetuned has learned the form (100.0%, +100.0 points")
    assert "adopt" not in found["verdict"].lower()
    assert "rescoldo review FILE" in found["verdict"]
    assert "--judge MODEL" in found["verdict"]


@pytest.mark.parametrize("bad", [word_salad, another_language, own_heading], ids=lambda model: model.__name__)
def test_it_needs_no_training_set(bad: Answering) -> None:
    parts, _ = measure_content({"m": answered(bad)}, ROLE, records("val"))
    assert parts["m"]["content"]["doubtful_model"]


@pytest.mark.parametrize("bad", [no_longer_true, in_the_wrong_lists], ids=lambda model: model.__name__)
def test_what_takes_understanding_is_left_to_who_understands(bad: Answering) -> None:
    """No measure sees it, and none says that the content is good."""
    document = compared(bad)
    found = decision(document)
    assert found["verdict_code"] == "content_unknown"
    assert "nobody has judged its content yet" in found["verdict"]
    assert decision(compared(bad, reference, people=people(votes(2, 28))))["content"]["status"] == "worse"


def test_the_reason_of_each_doubt() -> None:
    reasons = {
        other_concept: "input_words_used",
        repeating: "repeated_items",
        nearly_repeating: "repeated_items",
        recited: "copied_from_training",
        empty: "shared_items",
        parrot: "copied_from_input",
        word_salad: "known_pairs",
        another_language: "known_pairs",
        own_heading: "input_words_in_items",
        always_the_same: "shared_items",
        to_be_defined: "distinct_trigrams",
        prompt_itself: "shared_items",
        cut_short: "length",
    }
    for model, name in reasons.items():
        part = compared(model)["models"]["finetuned"]["content"]
        assert sum(part["by_measure"].get(name, {}).values()) >= 0.5 * part["answers"], (model.__name__, part)


def test_answers_as_the_datasets_own_are_not_doubtful_and_not_good_either() -> None:
    document = compared(reference)
    found = decision(document)
    assert found["verdict_code"] == "content_unknown"
    assert [one["finding"] for one in found["content"]["evidence"]] == ["normal"]
    assert [one["kind"] for one in found["content"]["missing"]] == ["people", "judge", "readable"]
    assert "nobody has judged its content yet" in found["verdict"]
    assert "adopt" not in found["verdict"].lower()
    assert document["models"]["base"]["content"]["doubtful_model"], "text without form is unlike them, too"


@pytest.mark.parametrize("bad", [None, *BAD], ids=lambda model: getattr(model, "__name__", "no form"))
@pytest.mark.parametrize("other", [None, reference], ids=["no form", "reference"])
def test_people_who_prefer_the_better_one(bad: Answering | None, other: Answering | None) -> None:
    """All pairs: a bad model, or one without form, against one without form and against good answers."""
    wins = (15, 15) if other is bad is None else (28, 2) if other is None else (1, 29)
    found = decision(compared(bad, other, people=people(votes(*wins))))
    if bad is None or other is reference:
        assert found["verdict_code"] == "keep", "its form is no better"
    else:
        assert found["verdict_code"] == "content_doubtful", "preferred to what cannot be read, and still doubtful"
    assert found["verdict"].startswith("Keep base")


def test_adopted_by_both() -> None:
    for evidence in ({"people": people(votes(26, 4))}, {"judges": [judge(votes(40, 4))]}):
        found = decision(compared(reference, **evidence))
        assert (found["verdict_code"], found["content"]["status"]) == ("adopt", "good")
        assert found["verdict"].startswith("Adopt finetuned: finetuned has learned the form (100.0%")
        assert "preferred its content to that of base" in found["verdict"]


def status(finetuned: Answering = reference, **evidence: Any) -> str:
    return str(decision(compared(finetuned, **evidence))["content"]["status"])


def test_who_decides() -> None:
    for_it, against, open_ = votes(26, 4), votes(4, 26), votes(16, 14)
    assert status(people=people(for_it)) == "good"
    assert status(people=people(against)) == "worse"
    assert status(people=people(open_)) == "unsettled"
    assert status(people=people(votes(4, 26, a="base", b="finetuned"))) == "good", "whoever is named first"
    assert status(people=people(against), judges=[judge(for_it)]) == "worse", "people before judges"
    assert status(people=people(open_), judges=[judge(for_it)]) == "good"
    assert status(judges=[judge(for_it), judge(against)]) == "unsettled"
    assert status(judges=[judge(against)]) == "worse"
    assert status(judges=[judge(for_it, passed=False)]) == "unknown", "a judge that cannot tell is not counted"
    assert status(judges=[judge(against, passed=False), judge(for_it)]) == "good"
    assert status(empty, judges=[judge(for_it)]) == "doubtful", "a judge does not take a doubt away"
    assert status(empty, people=people(against)) == "worse"
    assert status(people=people(votes(26, 4, b="another"))) == "unsettled", "not the one that it would replace"


def test_people_take_a_doubt_away_where_both_can_be_read() -> None:
    def half(i: int) -> dict[str, Any]:
        return {**reference(i), "title": "", "description": ""}

    found = decision(compared(empty, half, people=people(votes(28, 2))))
    assert found["adopt"]
    assert found["verdict_code"] == "adopt"
    assert [one["kind"] for one in found["content"]["missing"]] == ["judge"]


def test_form_that_another_has_for_nothing() -> None:
    """A base model with a grammar: then it is the one to beat, by content."""
    models, found = measure_content(
        {"baseline": answered(None), "base, constrained": answered(empty), "finetuned": answered(reference)},
        ROLE, records("val"), training=training(),
    )  # fmt: skip

    def verdict(*pairs: dict[str, Any]) -> dict[str, Any]:
        return decision(build_comparison(models, baseline="baseline", finetuned="finetuned", reference=found,
                                         people=people(*pairs) if pairs else None))  # fmt: skip

    assert verdict()["content"]["rivals"] == ["baseline", "base, constrained"]
    alone = verdict(votes(28, 2, b="baseline"))
    assert alone["verdict_code"] == "content_unsettled"
    assert alone["content"]["missing"][0]["rivals"] == ["base, constrained"]
    assert verdict(votes(28, 2, b="baseline"), votes(27, 3, b="base, constrained"))["verdict_code"] == "adopt"
    worse = verdict(votes(28, 2, b="baseline"), votes(2, 28, b="base, constrained"))
    assert worse["verdict_code"] == "content_worse"
    assert "people preferred the content of base, constrained" in worse["verdict"]


def test_one_rival_that_can_be_read_is_enough() -> None:
    """People preferred it to a readable one, too: their word counts, whatever the diagnostics say."""
    models, found = measure_content(
        {"baseline": answered(None), "base, constrained": answered(empty), "finetuned": answered(repeating)},
        ROLE, records("val"), training=training(),
    )  # fmt: skip
    preferred = people(votes(28, 2, b="baseline"), votes(27, 3, b="base, constrained"))
    document = build_comparison(models, baseline="baseline", finetuned="finetuned", reference=found, people=preferred)
    assert decision(document)["verdict_code"] == "adopt"


def test_votes_that_come_later_change_the_verdict() -> None:
    document = json.loads(json.dumps(compared(reference)))
    later = with_verdict({**document, "people": people(votes(28, 2))})
    assert decision(later)["verdict_code"] == "adopt"
    assert decision(document)["verdict_code"] == "content_unknown"
    assert with_verdict(later) == later
    assert with_verdict({"models": {}}) == {"models": {}}


def test_without_enough_answers_of_its_own() -> None:
    few = [{"concept": record["concept"]} for record in records("val")]
    models = {"base": answered(None), "finetuned": answered(repeating)}
    parts, found = measure_content(models, ROLE, few)
    assert found is None
    assert "doubtful_model" not in parts["finetuned"]["content"]
    content = decision(build_comparison(parts, baseline="base", finetuned="finetuned"))["content"]
    assert (content["status"], content["evidence"]) == ("unknown", [])
    assert "diagnostics" in [one["kind"] for one in content["missing"]]
    parts, found = measure_content(models, ROLE, few, training_records=records("train"), training=training())
    assert found is not None
    assert (found["source"], found["answers"]) == ("training", 98)
    assert "copied_from_training" not in found["ranges"], "they would all copy themselves"
    assert parts["finetuned"]["content"]["doubtful_model"]


@cache
def measured(name: str) -> list[dict[str, float | None]]:
    known = KnownPairs(ROLE, [ROLE.target(one) for part in ("train", "val") for one in records(part)])
    found = [
        {**alone(ROLE, (asked := ROLE.question(one)), (text := ROLE.target(one))),
         "known_pairs": known.share(asked, content_of(ROLE, text), own=text)}
        for one in records(name)
    ]  # fmt: skip
    return [{**{key: values.get(key) for key in MEASURES}, "length": values["words"]} for values in found]


def test_good_answers_are_seldom_outside() -> None:
    """The training set's answers are as good, and the ranges have never seen them."""
    ranges = ranges_of(measured("val"))
    share = sum(bool(outside(values, ranges)) for values in measured("train")) / len(measured("train"))
    assert 0 < share < 0.12
    own = compared(reference)["reference"]
    assert own["content"]["share"] < 0.2
    assert not any(outside(values, ranges) for values in measured("val")), "they are the ranges"


def test_a_range() -> None:
    values = [{**dict.fromkeys(MEASURES), "length": float(n), "repeated_items": 0.0} for n in range(10, 21)]
    ranges = ranges_of(values)
    assert set(ranges) == {"length", "repeated_items"}
    assert ranges["length"] == {"low": 10 - MARGIN * 5, "high": 20 + MARGIN * 5}
    assert ranges["repeated_items"] == {"low": None, "high": 0.0}
    assert outside({"length": 22.5, "repeated_items": 0.01}, ranges) == {"repeated_items": "above"}
    assert outside({"length": 7.4, "repeated_items": None}, ranges) == {"length": "below"}


def test_repeats() -> None:
    cancels = "The hub cancels a title in {} seconds without a refund."
    items = [cancels.format(15), "A buyer pays by card.", cancels.format(20), "a buyer PAYS, by card", "A buyer calls."]
    assert repeats(items) == [2, 3]
    assert repeats(["Pay", "pay!", "Sell", ""]) == [1]
    shares = shared_items([(0, items[:2]), (0, items[:1]), (1, [items[2], "Something else entirely"]), (2, [])])
    assert shares == [0.5, 1.0, 0.5, None], "answers to the same input may be alike"


def test_known_pairs() -> None:
    texts = ["The hub sends feeds. It pays.", "The hub sends mail.", "The hub sends mail."]
    known = KnownPairs(get_role("generic"), texts)
    share = [known.share(asked, Content([text], []), own) for asked, text, own in (
        ("", "the hub sends feeds", None), ("", texts[0], texts[0]), ("", "It pays the hub", texts[0]),
        ("", "It pays the hub", "not among them"), ("", "sends hub the", None), ("It pays", "it pays nothing", None),
        ("", "hub", None),
    )]  # fmt: skip
    assert share == [1.0, 2 / 5, 1 / 3, 2 / 3, 0.0, 0.5, None], "its own input's answer is set apart"


def test_figures_and_names() -> None:
    assert figures("5,800 titles in 3.5 s, at 10:30 and 7%") == ["5800", "35", "1030", "7"]
    texts = [
        "Metadata Hub for Academic Publishers",
        "The hub sends ONIX 3.0 to Amazon. Each editor uses FileMaker daily.",
    ]
    assert names(texts) == {"ONIX", "Amazon", "FileMaker"}
    text = "title: Hub\nfr:\n- description: Amazon and Kobo get 34 feeds and 12 e-mails.\n"
    found = alone(ROLE, "A hub for Amazon with 34 recipients", text)
    assert (found["new_figures"], found["new_names"]) == (1, 1)


def test_an_answer_that_cannot_be_read_is_measured_by_its_lines() -> None:
    text = "title: Shop\nconstraints:\n- id: C001\n  description: It sells.\n- id: C002\n  description: 'It sells.\n"
    content = content_of(ROLE, text)
    assert content.items == ["It sells.", "It sells."]
    assert alone(ROLE, "shop", text)["repeated_items"] == 0.5


def test_free_text_and_json() -> None:
    generic = get_role("generic")
    found = alone(generic, "", "It is good. It is good. It is bad.")
    assert found["repeated_items"] == pytest.approx(1 / 3)
    assert found["input_words_used"] is None
    value = {"title": "Shop", "functional_requirements": [{"id": "FR001", "description": "x", "priority": "High"}] * 2}
    assert content_of(ROLE, json.dumps(value)).items == ["x", "x"]


def test_the_layout_of_a_document_is_not_its_content(tmp_path: Path) -> None:
    """The same answers on one line, as servers write JSON, measure the same: nothing is doubtful, repeats are seen."""
    schema = {"type": "object", "properties": {"title": {"type": "string"}, "steps": {"type": "array", "items": {
        "type": "object", "properties": {"text": {"type": "string"}}}}}}  # fmt: skip
    spec = {"name": "plans", "input": "goal", "answer": "plan", "serialization": "json", "prompt": "{{ goal }}",
            "metric": "valid", "schema": schema}  # fmt: skip
    (tmp_path / "plans.yaml").write_text(json.dumps(spec))
    role = get_role(str(tmp_path / "plans.yaml"))

    def plan(i: int, *more: str) -> dict[str, Any]:
        steps = [f"Order {i} metres of rope for boat {i}", f"Ask harbour {i} for a place", *more]
        return {"title": f"Boat {i} in harbour {i}", "steps": [{"text": text} for text in steps]}

    rows = [{"goal": f"Boat {i} in harbour {i} with {i} metres of rope", "plan": plan(i)} for i in range(12)]

    def model(write: Callable[[int], str]) -> dict[str, Any]:
        class Plans(Fake):
            def prompt(self, record: dict[str, Any]) -> str:
                return str(record["goal"])

            def predict(self, records: Any, sampling: Any, on_progress: Any = None) -> Any:
                yield from ((i, Prediction(write(i), True, 10, 0.5)) for i in range(len(records)))

        return evaluate(Plans(), rows, role, Sampling())

    ask = "Ask harbour {} for a place"
    parts, _ = measure_content(
        {
            "own": model(lambda i: role.target(rows[i])),
            "one line": model(lambda i: json.dumps(plan(i))),
            "tight": model(lambda i: "```json\n" + json.dumps(plan(i), separators=(",", ":")) + "\n```"),
            "repeating": model(lambda i: json.dumps(plan(i, ask.format(i)))),
            "unknown key": model(lambda i: json.dumps({**plan(i), "more": "word " * 400})),
        },
        role, rows,
    )  # fmt: skip
    for name in ("one line", "tight"):
        assert parts[name]["content"] == parts["own"]["content"]
        assert parts[name]["diagnostics"] == parts["own"]["diagnostics"]
    assert not parts["own"]["content"]["doubtful"]
    assert parts["repeating"]["diagnostics"]["duplicate_descriptions"] == 12
    assert parts["unknown key"]["content"]["by_measure"]["length"] == {"above": 12}, "nothing is left out"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
).map(json.dumps))  # fmt: skip
def test_a_rewritten_answer_is_the_same_document(text: str) -> None:
    for role in (ROLE, get_role("po")):
        written = role.rewritten(text)
        assert role.rewritten(written) == written
        assert repr(role.parse(written)[0]) == repr(role.parse(text)[0])


def test_repeated_answers_count_once() -> None:
    """Three answers to each concept are not three concepts: the interval does not get narrower by them."""
    twelve = records("val")[:12]
    part = evaluate(Fake(lambda i, p: p), list(twelve), ROLE, Sampling(temperature=1.0), repeats=3)
    found = measure_content({"m": part}, ROLE, twelve)[0]["m"]["content"]
    assert (found["answers"], found["inputs"]) == (36, 12)
    assert found["interval_95"] == pytest.approx(list(wilson(12 * found["share"], 12)))


def test_failed_answers_are_not_content() -> None:
    def edit(index: int, prediction: Prediction) -> Prediction:
        return Prediction("", False, 0, 0.0, "HTTP 500") if index < 20 else prediction

    part = evaluate(Fake(edit), list(records("val")), ROLE, Sampling())
    found = measure_content({"m": part}, ROLE, records("val"))[0]["m"]
    assert found["content"]["answers"] == 2
    assert "content" not in found["predictions"][0]


def test_fields_of_a_program_are_measured_as_the_answer() -> None:
    def edit(index: int, prediction: Prediction) -> Prediction:
        return Prediction("[[ ## reasoning ## ]] x", True, 9, 1.0, fields=reference(index))

    part = evaluate(Fake(edit), list(records("val")), ROLE, Sampling(), training=training())
    found = measure_content({"m": part}, ROLE, records("val"), training=training())[0]["m"]
    assert not found["content"]["doubtful_model"]


class Words:
    """A scale whose tokens are letters, and to which every answer is as surprising as it is long."""

    def describe(self) -> dict[str, Any]:
        return {"spec": "letters"}

    def count_tokens(self, text: str) -> int:
        return len(text)

    def answer_perplexity(self, role: Role, answers: Sequence[tuple[dict[str, Any], str]]) -> list[float | None]:
        return [None if not i else float(len(text)) for i, (_, text) in enumerate(answers)]


def test_a_scale_counts_tokens_and_measures_perplexity() -> None:
    models = {"m": answered(empty)}
    parts, found = measure_content(models, ROLE, records("val"), scale=Words(), perplexity=True)
    assert found is not None
    assert (found["length_unit"], found["scale"]) == ("tokens", {"spec": "letters"})
    row = parts["m"]["predictions"][3]
    assert row["content"]["measures"]["length"] == row["content"]["measures"]["perplexity"] == len(row["text"])
    assert row["content"]["outside"]["perplexity"] == row["content"]["outside"]["length"] == "below"
    assert parts["m"]["predictions"][0]["content"]["measures"]["perplexity"] is None
    _, found = measure_content(models, ROLE, records("val"), scale=Words())
    assert found is not None
    assert "perplexity" not in found["ranges"]


@given(st.integers(1, 200), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    wanted = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_fisher_is_scipys(n: int, m: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    wanted = stats.fisher_exact([[a, n - a], [b, m - b]], alternative="greater").pvalue
    assert fisher_greater((a, n), (b, m)) == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text(question: str, text: str) -> None:
    for role in (ROLE, get_role("generic")):
        for name, value in alone(role, question, text).items():
            if value is not None:
                assert value >= 0
                assert value <= 1 or not (name in MEASURES and MEASURES[name].share)


def test_long_texts_do_not_hang() -> None:
    started = time.monotonic()
    for text in ("- description: a b c\n" * 50_000, "A1 " * 100_000, "description: " * 30_000, ". " * 200_000):
        alone(ROLE, "a b", text)
        shared_items([(i, content_of(ROLE, text).items) for i in range(3)])
    assert time.monotonic() - started < 20


def test_the_engine_measures_answers_as_it_measures_a_dataset(run: Path) -> None:
    """The base model alone, and the same perplexity as models.perplexity gives for one record's own answer."""
    from rescoldo.models.engine_chat import EngineChat
    from rescoldo.models.loaded import load_for_inference

    loaded = load_for_inference(str(run), "fp32", role=ROLE, records=list(records("val")[:2]))
    scale = EngineChat(loaded, adapter=False)
    pairs = [(record, ROLE.target(record)) for record in records("val")[:2]]
    found = scale.answer_perplexity(ROLE, [*pairs, (records("val")[0], "x " * 5000)])
    own = [scale.perplexity(ROLE, [record])["perplexity"] for record, _ in pairs]
    assert found == [pytest.approx(own[0], rel=1e-4), pytest.approx(own[1], rel=1e-4), None]
    tuned = EngineChat(loaded).answer_perplexity(ROLE, pairs)
    assert tuned != pytest.approx(own, rel=1e-4), "the adapter is off"
    assert scale.count_tokens("a title") > 0


def test_a_document_is_written_with_the_verdict_of_its_votes(tmp_path: Path) -> None:
    document = {**compared(reference), "people": people(votes(28, 2))}
    assert decision(document)["verdict_code"] == "content_unknown"
    write_document(document, tmp_path / "c.json")
    assert decision(json.loads((tmp_path / "c.json").read_text()))["verdict_code"] == "adopt"
    assert "people preferred its content" in (tmp_path / "c.md").read_text()
