"""The drafts' page in a real browser: the keyboard alone, a telephone, dark, killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.data.examples import record, write
from tests.draft.fake import BA, asked, drafted
from tests.review.test_browser import EVIL, browser, number, press

pytestmark = pytest.mark.slow


@pytest.fixture
def file(tmp_path: Path) -> Path:
    say = {
        record(1)["concept"]: BA.target(record(1)),
        EVIL: "no: [yaml " + EVIL,
        record(3)["concept"]: BA.target(record(3)),
    }
    made = drafted(asked(tmp_path, *say, role=BA), BA, lambda text: next(say[one] for one in say if one in text))
    made.records[1]["provenance"]["extract"] = EVIL
    return write(tmp_path / "drafts.jsonl", *made.records)


@contextmanager
def served(file: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [
        sys.executable,
        "-m",
        "rescoldo",
        "data",
        "review",
        str(file),
        "--role",
        "ba",
        "--reviewer",
        "ana",
        "--json",
    ]
    process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.kill()
        process.wait()


def accepted(file: Path) -> list[Any]:
    path = file.with_name("drafts_accepted.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_the_keyboard_alone(file: Path) -> None:
    with served(file) as (url, process), browser() as context:
        page = context.new_page()
        page.goto(url)
        assert number(page) == 0
        assert page.is_hidden("#editor")
        press(page, "a")
        assert number(page) == 1
        page.keyboard.press("a")  # no YAML: it cannot be accepted as it is
        page.wait_for_function("() => document.getElementById('notice').textContent.includes('NOT saved')")
        assert len(accepted(file)) == 1
        page.keyboard.press("e")
        assert page.is_visible("#editor")
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(BA.target(record(2)))
        press(page, "Control+Enter")
        assert number(page) == 2
        press(page, "r")
        assert page.is_visible("#all-done")
        press(page, "u")
        assert number(page) == 2
        assert "was undone" in page.inner_text("#notice")
        press(page, "a")
        with page.expect_navigation():
            page.click("[data-go='finish']")
        assert page.is_visible("#finished")
        assert process.wait(20) == 0
        assert [fault for fault in context.faults if "422" not in fault] == []
        assert page.title() != "ran"
    rows = accepted(file)
    assert [row["provenance"]["edited"] for row in rows] == [False, True, False]
    assert rows[1]["requirements"] == record(2)["requirements"]


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)])
def test_a_telephone_and_dark(file: Path, width: int, dark: bool) -> None:
    view = {"viewport": {"width": width, "height": 800}, "color_scheme": "dark" if dark else "light"}
    with served(file, "--lang", "es") as (url, _), browser(**view, has_touch=True) as context:
        page = context.new_page()
        for place in (0, 1):
            page.goto(f"{url}?n={place}")
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(23, 21, 19)" if dark else "rgb(251, 250, 248)"
            )
            boxes = [page.locator(f"[data-choice='{one}']").bounding_box() for one in ("accept", "edit", "reject")]
            assert all(box["height"] >= 44 and box["y"] + box["height"] <= 800 for box in boxes), "in reach of a thumb"
        page.tap("[data-choice='edit']")
        page.fill("#input", record(2)["concept"])
        page.fill("#text", BA.target(record(2)))
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        with page.expect_navigation():
            page.tap("[data-choice='accept']")
        assert number(page) == 2
        assert "1 aceptados" in page.inner_text("#progress")
        assert context.faults == []


def test_killed_in_the_middle(file: Path) -> None:
    with browser() as context:
        page = context.new_page()
        with served(file) as (url, process):
            page.goto(url)
            press(page, "a")
            assert len(accepted(file)) == 1
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.keyboard.press("e")
            page.keyboard.insert_text("kept")
            page.keyboard.press("Escape")
            page.keyboard.press("a")
            page.wait_for_function("() => document.getElementById('notice').textContent.includes('NOT saved')")
            assert "kept" in page.input_value("#text"), "what was written is still there"
        with served(file) as (url, _):
            page.goto(url)
            assert number(page) == 1, "it resumes where it was"
            assert "1 accepted" in page.inner_text("#progress")
