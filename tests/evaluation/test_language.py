"""Reports in Spanish: all of them, not half."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rescoldo.evaluation
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import write_document
from rescoldo.evaluation.decision import decide
from rescoldo.evaluation.language import ENGLISH, LANGUAGES, language
from rescoldo.evaluation.measures import MEASURES
from rescoldo.evaluation.page import page
from rescoldo.evaluation.report import FACTS, markdown
from rescoldo.evaluation.score import doubts
from rescoldo.evaluation.spanish import MESSAGES, TEXTS
from rescoldo.evaluation.wording import LABELS, REASONS
from rescoldo.role import get_role
from tests.browser import open_page
from tests.evaluation.test_content import compared, empty, judge, people, reference, repeating, votes
from tests.evaluation.test_page import document

FOLDER = Path(rescoldo.evaluation.__file__).parent
ES = LANGUAGES["es"]
PLACE = re.compile(r"\{(\w+)\}")


def spoken() -> set[str]:
    """Each text that the code gives a Language to say, where it stands as it is."""
    found: set[str] = set()
    for name in ("wording", "report", "page"):
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
            said = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say"
            if said and node.args and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
                found.add(node.args[0].value)  # type: ignore[attr-defined]
    found |= set(re.findall(r'say\("([^"]+)"\)', (FOLDER / "page.html.j2").read_text(encoding="utf-8")))
    return found


def test_all_that_is_said_has_a_translation() -> None:
    from_tables = {*LABELS.values(), *REASONS.values(), *(fact.replace("_", " ") for fact in FACTS)}
    assert len(spoken()) > 60
    assert (spoken() | from_tables) - set(TEXTS) == set()
    assert set(LABELS) == set(MEASURES)
    sides = {(name, side) for name, kind in MEASURES.items()
             for side, bad in (("below", kind.low), ("above", kind.high)) if bad}  # fmt: skip
    assert set(REASONS) == sides


@pytest.mark.parametrize("table", [TEXTS, MESSAGES], ids=["texts", "messages"])
def test_translations_hold_the_same_values(table: dict[str, str]) -> None:
    for english, spanish in table.items():
        assert sorted(set(PLACE.findall(english))) == sorted(set(PLACE.findall(spanish))), english


def messages(found: dict[str, Any]) -> set[str]:
    """What a document itself says in English."""
    texts: set[str] = set()
    for part in found["models"].values():
        texts |= set(part.get("warnings", []))
        texts |= {str(note) for row in part["predictions"] for note in row["notes"]}
    decision = found["comparison"]["decision"]
    told = {f"{name}: {text}" for name, part in found["models"].items() for text in part.get("warnings", [])}
    return texts | {decision["sentence"], *decision["warnings"], *(set(decision["reasons"]) - told)}


def test_all_that_a_document_says_has_a_translation() -> None:
    unknown = {text for text in messages(document()) | messages(compared(empty)) if not ES.known(text)}
    assert not unknown


@pytest.mark.parametrize("scores", [
    ([0.0] * 9, [1.0] * 9), ([0.9] * 9, [0.92] * 9), ([0.9] * 9, [0.8] * 9), ([0.2] * 9, [0.6] * 9),
    ([0.0] * 3, [1.0] * 3), ([0.5], [1.0]), ([0.5, 0.6] * 4, [0.6, 0.65] * 4),
])  # fmt: skip
@pytest.mark.parametrize("train_score", [None, 0.99])
def test_all_that_the_rule_says_has_a_translation(scores: tuple[list[float], list[float]], train_score: float) -> None:
    old, new = scores
    found = decide({"base": [1.0] * len(old), "old": old, "new": new}, finetuned="new", reference="old",
                   baseline="base", train_score=train_score)  # fmt: skip
    for text in [found["sentence"], *found["reasons"]]:
        assert ES.known(text), text
        assert not re.search(r"\d\.\d|\d%|\b(the|points?|examples?|is|at least|below)\b", ES.message(text)), text


def test_what_stands_in_an_answer_as_notes() -> None:
    answers = ["- a", "plain", "", "title: x\nfunctional_requirements: y\nconstraints:\n- id: C1\n- 3\n",
               "title: long enough to be one\nconstraints:\n- {id: C001, description: d, priority: Urgent}\n"
               "- {id: C001, description: d, priority: High}\nnon_functional_requirements: []"]  # fmt: skip
    for role in ("ba", "po"):
        for text in answers:
            for note in get_role(role).score(text).notes:
                if " is not YAML" not in note:
                    assert ES.known(note), note


def test_values_are_kept_and_written_as_in_spanish() -> None:
    assert ES.message("finetuned 95.5%, at least 90%") == "finetuned 95,5 %, como mínimo 90 %"
    assert ES.message("qwen2.5 95.5%, below 90%") == "qwen2.5 95,5 %, por debajo del 90 %", "a name is no number"
    kept = "Keep a: b is better (+1,234.5 points), but at 1.0% below 90%."
    mantener = "Mantener a: b es mejor (+1\u202f234,5 puntos), pero con 1,0 % no llega al 90 %."
    assert ES.message(kept) == mantener
    more = "But one example settles nothing: validate on more."
    assert ES.message(f"{kept} {more}") == f"{mantener} Pero un ejemplo no aclara nada: valide con más."
    assert ES.message("a metric's own words") == "a metric's own words"
    assert (ES.percent(0.955, 1), ES.points(0.955), ES.number(12345, ",d")) == ("95,5 %", "+95,5", "12\u202f345")
    assert (ENGLISH.percent(0.955, 1), ENGLISH.number(12345.5, ",.1f")) == ("95.5%", "12,345.5")
    assert ES.listed(["a", "b", "c"]) == "a, b y c"


@given(st.text(max_size=200))
def test_any_message(text: str) -> None:
    ES.message(text)
    assert ENGLISH.message(text) == text


def test_there_is_no_other_language() -> None:
    with pytest.raises(RescoldoError, match="--lang: invalid value 'fr': expected en or es"):
        language("fr")


EVIDENCE = [
    {},
    {"people": people(votes(26, 4)), "judges": [judge(votes(20, 20))]},
    {"people": people(votes(16, 14)), "judges": [judge(votes(40, 1), passed=False)]},
    {"judges": [judge(votes(2, 40))]},
]
# Words that no Spanish text has; in names, keys and the answers themselves they may stand.
ENGLISH_WORDS = re.compile(
    r"\b(the|of|and|with|answers?|points?|keep|adopt|learned|missing|warning|scores?|mean|interval|unlike|against|"
    r"tokens an|words|normal range|judge that|people|votes of|content|form|nothing|repeat(ed)?|empty|at least)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("model", [reference, repeating], ids=lambda model: model.__name__)
def test_no_english_in_spanish_reports(model: Any, evidence: dict[str, Any]) -> None:
    found = compared(model, metadata={"lang": "es", "dataset": "d.jsonl", "examples": 22}, **evidence)
    sentence = found["comparison"]["decision"]["verdict"]
    for part in found["models"].values():  # what is left is what the report says itself
        for row in part["predictions"]:
            row["text"], row["concept"] = "", "c"
    for text in (markdown(found), page(found)):
        shown = re.sub(
            r"<style>.*?</style>|<[^>]*>|\\?`[^`]*`|completeness|title|description\w*", " ", text, flags=re.DOTALL
        )
        shown = re.sub(r"\w*\\?_\w*|rescoldo [^|<\n]*|- id_format.*|constraints|--judge \w+", " ", shown)
        assert not ENGLISH_WORDS.search(shown), ENGLISH_WORDS.findall(shown)
        assert "95 %" in text
        assert not re.search(r"\d\.\d%|\d%", shown)
    assert "finetuned has learned" in sentence, "the document itself stays English"


def test_models_that_answer_alike_leave_nothing_to_choose() -> None:
    """It is said so, instead of a win rate of no vote."""
    none = {**votes(1, 0), "wins": 0, "win_rate": 0.5, "interval": [0.0, 1.0], "settled": False}
    for lang, said in (("en", "no two answers to choose from"), ("es", "no hay dos respuestas entre las que elegir")):
        found = markdown(compared(reference, judges=[judge(none)], metadata={"lang": lang}))
        (line,) = (line for line in found.splitlines() if said in line)
        assert "50" not in line


def test_the_verdict_is_first() -> None:
    found = compared(repeating, metadata={"lang": "es"})
    assert (
        markdown(found)
        .splitlines()[2]
        .startswith("**Mantener base por ahora: finetuned ha aprendido la forma (100,0 %")
    )
    assert '<html lang="es">' in page(found)


def test_in_a_browser(tmp_path: Path) -> None:
    found = document()
    found["metadata"]["lang"] = "es"
    shown = open_page(write_document(found, tmp_path / "c.json")[1], width=390)
    assert (shown.console, shown.requests, shown.overflow) == ([], [], 0)
    assert shown.text.split("\n\n")[1].startswith("Mantener optimized por ahora: finetuned ha aprendido la forma")
    assert "Puntuaciones" in shown.text


def test_doubts_are_said() -> None:
    row = {"diagnostics": {"concept_words_used": 0.0, "longest_copied_run": 99}, "ended": False, "text": "x"}
    assert len(doubts(row)) == 3
    assert all(text in TEXTS for text in doubts(row))
