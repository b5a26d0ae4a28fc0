"""The HTML page: in a real browser, light and dark, wide and as on a telephone; and the marks in the answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.engine.types import Sampling
from rescoldo.evaluation import build_comparison, evaluate, write_document
from rescoldo.evaluation.marks import mark_lines
from rescoldo.evaluation.page import answers_by, distribution, page
from rescoldo.models.predictor import Prediction
from rescoldo.role import get_role
from rescoldo.role.metrics import Note, place_of
from tests.browser import open_page
from tests.data.examples import record
from tests.evaluation.fake import ROLE, Fake

EVIL = '<script>console.error("ran")</script><img src=x onerror="console.error(1)"><!-- </div> {{ 7*7 }}'
MARKS = "\x00\x07\x1b[31m\u202edesrever\u2066"  # a terminal or a browser would obey them
LONG = "w" * 300
CUT_OFF = """() => [...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1
    && getComputedStyle(e).display !== 'inline');
}).map(e => e.outerHTML.slice(0, 80)).filter(text => !text.startsWith('<span>'))"""


def document(repeats: int = 1) -> dict[str, Any]:
    """Three models: one perfect, one with every fault that is marked, one whose texts attack the page."""

    def faulty(index: int, prediction: Prediction) -> Prediction:
        text = prediction.text
        return [
            replace(prediction, text=text.replace("FR001", "FR01", 1)),
            replace(prediction, text=text.replace("priority: High", "priority: Urgent", 1), ended=False),
            Prediction("", False, 0, 0.0, error="HTTP 500: out of order"),
            replace(prediction, text="Sure! Here: it is: x"),
        ][index % 4]

    def evil(index: int, prediction: Prediction) -> Prediction:
        return replace(prediction, text=EVIL + MARKS + LONG if index % 2 else prediction.text)

    records = [record(i) for i in range(5)]
    records[1]["concept"] = EVIL + " " + MARKS + LONG
    models = {
        name: evaluate(Fake(edit), records, ROLE, Sampling(), repeats=repeats)
        for name, edit in (("baseline", evil), ("optimized", faulty), ("finetuned", lambda i, p: p))
    }
    models["baseline"]["spec"] = EVIL
    return build_comparison(models, baseline="baseline", optimized="optimized", finetuned="finetuned",
                            metadata={"dataset": LONG + ".jsonl", "examples": 5, "role": "ba"})  # fmt: skip


def test_figures_and_names_stay_in_one_piece(tmp_path: Path) -> None:
    """Also beside names of models that are long: a table is rather as wide as the page, or scrolls."""
    models = {
        name: evaluate(Fake(), [record(i) for i in range(6)], ROLE, Sampling())
        for name in ("baseline", "baseline_constrained", "optimized", "together", "finetuned")
    }
    found = build_comparison(models, baseline="baseline", finetuned="finetuned", metadata={})

    def look(page: Any) -> None:
        broken = """() => [...document.querySelectorAll('th, td')].slice(1).filter(e => {
            const range = document.createRange(); range.selectNodeContents(e);
            const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
            return lines > 1 && lines > e.textContent.trim().split(/[ \\n-]+/).length;
        }).map(e => e.textContent)"""
        assert page.evaluate(broken) == []

    assert open_page(write_document(found, tmp_path / "c.json")[1], act=look).overflow == 0


def test_a_long_address_of_a_judge_stays_in_the_verdict(tmp_path: Path) -> None:
    """Also one in a warning."""
    found = document()
    found["models"]["finetuned"]["warnings"] = [LONG]
    path = write_document(found, tmp_path / "c.json")[1]
    path.write_text(path.read_text().replace('<p class="sentence">', f'<p class="sentence">{LONG} ', 1))
    assert open_page(path, width=390).overflow == 0


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, False), (320, True)])
def test_in_a_browser(width: int, dark: bool, tmp_path: Path) -> None:
    path = write_document(document(), tmp_path / "c.json")[1]
    assert path == tmp_path / "c.html"

    def open_all(page: Any) -> None:
        for entry in page.locator("details.concept > summary").all()[1:]:
            entry.click()
        assert page.locator("details.concept[open]").count() == 5
        assert page.locator(".raw[open]").count() == 0, "the raw text is behind a fold"
        assert not page.evaluate(CUT_OFF), "everything is inside its box"
        entry = page.locator(".raw > summary").first
        entry.click()
        assert page.locator(".raw[open] .text").first.is_visible()
        assert "finetuned" in page.locator("#key").inner_text()
        colours = "e => getComputedStyle(e).color"
        items = page.locator(".answer .document li")
        assert items.count()
        text = page.locator("body").evaluate(colours)
        assert {item.evaluate(colours) for item in items.all()[:5]} == {text}, "an item of an answer is no fault"
        assert page.locator(".answer .notes").first.evaluate(colours) != text

    found = open_page(path, width=width, dark=dark, act=open_all, screenshot=tmp_path / "page.png")
    assert (found.console, found.requests, found.overflow) == ([], [], 0)
    assert found.text.split("\n\n")[1].startswith("Keep optimized for now: finetuned has learned the form (100.0%")
    assert "rank 1, +40.0 points against the baseline" in found.text
    assert "HTTP 500: out of order" in found.text
    assert EVIL in found.text, "it is shown as the text that it is"
    assert not set(path.read_text()) & set("\x00\x07\x1b\u202e\u2066")
    assert "\ufffd[31m\ufffddesrever" in found.text
    assert found.background == ("rgb(23, 21, 19)" if dark else "rgb(251, 250, 248)")


def test_an_evaluation_and_repeats(tmp_path: Path) -> None:
    one = {"metadata": {}, "models": {"base": evaluate(Fake(), [record(0)], ROLE, Sampling())}}
    path = write_document(one, tmp_path / "eval")[1]
    assert path.name == "eval.html"
    assert "Evaluation · rescoldo" in open_page(path).text
    assert "repeat 2" in page(document(repeats=2))
    assert "http://" not in page(document())


def test_an_answer_is_a_document() -> None:
    text = "title: Shop\nowner: {name: Ann, role: '<b>'}\nfr:\n"
    text += "- {id: FR001, description: Sells., priority: High, why: x}\n- plain\n- {id: [1], description: y}\n"
    found = {
        "metadata": {},
        "models": {"base": evaluate(Fake(lambda i, p: replace(p, text=text)), [record(0)], ROLE, Sampling())},
    }
    html = " ".join(page(found).split())
    assert "<h3>Shop</h3>" in html
    assert '<span class="id">FR001</span>Sells. <span class="priority">High</span>' in html
    assert "<h4>why</h4><p>x</p>" in html
    assert "<li><p>plain</p> </li>" in html
    assert "<p>&lt;b&gt;</p>" in html
    assert "text as written" in html
    assert "[0]: no description" not in html


def test_a_base_has_its_own_name() -> None:
    part = {"spec": "/home/me/artifacts/run", "adapter": False, "base_model": "sample:smollm2"}
    assert answers_by(part) == "sample:smollm2"
    assert answers_by({**part, "adapter": True}) == "/home/me/artifacts/run"
    assert answers_by({"spec": "openai:m@http://x/v1"}) == "openai:m@http://x/v1"


def test_distribution() -> None:
    counts = [entry["count"] for entry in distribution([0.0, 0.05, 0.1, 0.3, 0.7, 0.99, 1.0])]
    assert counts == [2, 1, 0, 1, 0, 0, 0, 1, 0, 2]


def test_marks() -> None:
    text = get_role("ba").target(record(0)).replace("FR001", "FR01", 1).replace("NFR002", "NFR001")
    text = text.replace("title: ", "title: x #", 1).replace("priority: High", "priority: Urgent", 1)
    notes = get_role("ba").score(text).notes
    notes = [*notes, Note.at("cut off after 3 tokens", -1), "answer: none"]
    lines, rest = mark_lines(text, notes, [place_of(note) for note in notes])
    marked = {line.text.strip(): line.notes for line in lines if line.notes}
    assert rest == ["answer: none"]
    assert any("title" in note for note in marked["title: x #Product for amber0"])
    assert any("FR01 in" in note for note in marked["- id: FR01"])
    assert any("Urgent" in note for note in marked["priority: Urgent"])
    twice = [line for line in lines if any("occurs 2 times" in note for note in line.notes)]
    assert [line.text for line in twice] == ["- id: NFR001", "- id: NFR001"]
    assert lines[-1].notes == ["cut off after 3 tokens"]
    assert mark_lines("a\nb\nc", ["answer: oh"], [[2]])[0][1].notes


PLACES = st.lists(
    st.lists(st.integers(-3, 9) | st.text(max_size=3) | st.sampled_from(["title", "id"]), max_size=3), max_size=5
)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.lists(st.text(max_size=40), max_size=4), PLACES)
def test_marks_lose_nothing(text: str, notes: list[str], places: list[Any]) -> None:
    lines, rest = mark_lines(text, notes, places)
    assert "\n".join(line.text for line in lines) == text
    assert {*rest, *(note for line in lines for note in line.notes)} == set(notes)


def test_a_line_without_end_is_shown_in_part() -> None:
    (line,), _ = mark_lines("x" * 1_000_000, [])
    assert len(line.text) < 1_000_000
