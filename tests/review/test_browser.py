"""The page in a real browser: the keyboard alone, a telephone, dark, killed in the middle, two windows at once."""

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

from rescoldo.files import write_json
from rescoldo.preference.votes import VoteFile, votes_path
from tests.browser import ARGUMENTS, CHROMIUM
from tests.data.examples import record
from tests.evaluation.fake import ROLE
from tests.preference.documents import whole_comparison

pytestmark = pytest.mark.slow
EVIL = '</div><script>document.title = "ran"</script><img src=x onerror="document.title = 1">' + "w" * 300


@pytest.fixture
def file(tmp_path: Path) -> Path:
    document = whole_comparison(3, baseline=lambda e: EVIL, finetuned=lambda e: ROLE.target(record(e)))
    write_json(tmp_path / "c.json", document)
    return tmp_path / "c.json"


@contextmanager
def served(file: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`rescoldo review`, its address, and the process."""
    command = [sys.executable, "-m", "rescoldo", "review", str(file), "--reviewer", "ana", "--json", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.kill()
        process.wait()


@contextmanager
def browser(**settings: Any) -> Iterator[Any]:
    """A browser's context; what its pages complain of, and requests to elsewhere, fail the test."""
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "there is no Chromium: apt install chromium"
        pytest.skip("there is no Chromium: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = one.new_context(**settings)
        context.faults = []
        context.on("console", lambda message: context.faults.append(message.text))
        context.on("weberror", lambda error: context.faults.append(str(error.error)))
        context.on(
            "request",
            lambda request: (
                None if request.url.startswith(("http://127.0.0.1:", "data:")) else context.faults.append(request.url)
            ),
        )
        yield context
        one.close()


def number(page: Any) -> int:
    return int(page.get_attribute("body", "data-number"))


def press(page: Any, key: str) -> None:
    """A key that leads to another page."""
    with page.expect_navigation():
        page.keyboard.press(key)


def test_the_keyboard_alone(file: Path) -> None:
    with served(file) as (url, process), browser() as context:
        page = context.new_page()
        page.goto(url)
        assert number(page) == 0
        page.keyboard.press("n")
        page.keyboard.type("good: 1, 2 and 0 are not votes here")
        page.keyboard.press("Escape")
        press(page, "1")
        assert number(page) == 1
        press(page, "2")
        press(page, "ArrowLeft")
        assert (number(page), page.get_attribute("[data-choice='2']", "aria-pressed")) == (1, "true")
        press(page, "u")
        assert number(page) == 1
        assert "was undone" in page.inner_text("#notice")
        page.keyboard.press("Control+0")  # the browser's own
        assert number(page) == 1
        press(page, "0")
        press(page, "0")
        assert page.is_visible("#all-done")
        with page.expect_navigation():
            page.click("[data-go='finish']")
        assert page.is_visible("#finished")
        assert process.wait(20) == 0
        assert context.faults == []
        assert page.title() != "ran"
    votes = [vote for vote in VoteFile(votes_path(file)).votes.values() if vote.vote is not None]
    assert sorted((vote.vote, vote.note[:4]) for vote in votes) == [(0, ""), (0, ""), (1, "good")]
    document = json.loads(file.read_text())
    assert document["people"]["votes"] == 3
    assert file.with_suffix(".html").exists()


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)])
def test_a_telephone_and_dark(file: Path, width: int, dark: bool, tmp_path: Path) -> None:
    view = {"viewport": {"width": width, "height": 800}, "color_scheme": "dark" if dark else "light"}
    with served(file, "--lang", "es") as (url, _), browser(**view, has_touch=True) as context:
        page = context.new_page()
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(23, 21, 19)" if dark else "rgb(251, 250, 248)"
        )
        boxes = [page.locator(f"[data-choice='{choice}']").bounding_box() for choice in (1, 0, 2)]
        assert all(box["height"] >= 44 and box["y"] + box["height"] <= 800 for box in boxes), "in reach of a thumb"
        left, right = page.locator("#answer1").bounding_box(), page.locator("#answer2").bounding_box()
        assert (left["y"] == right["y"]) == (width > 700), "side by side where there is room"
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        with page.expect_navigation():
            page.tap("[data-choice='2']")
        assert number(page) == 1
        assert "1 con voto" in page.inner_text("#progress")
        assert context.faults == []


def test_killed_in_the_middle(file: Path) -> None:
    with browser() as context:
        page = context.new_page()
        with served(file) as (url, process):
            page.goto(url)
            press(page, "1")
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.keyboard.press("n")
            page.keyboard.type("kept")
            page.keyboard.press("Escape")
            page.keyboard.press("2")
            page.wait_for_function("() => document.getElementById('notice').textContent.includes('NOT saved')")
            assert page.input_value("#note") == "kept", "what was written is still there"
        with served(file) as (url, _):
            page.goto(url)
            assert number(page) == 1, "it resumes where it was"
            assert "1 voted" in page.inner_text("#progress")
            press(page, "ArrowLeft")
            assert page.get_attribute("body", "data-vote") == "1"


def test_two_windows_at_once(file: Path) -> None:
    with served(file) as (url, _), browser() as context:
        one, other = context.new_page(), context.new_page()
        one.goto(url)
        other.goto(url)
        press(one, "1")
        assert not one.inner_text("#notice")
        press(other, "2")
        assert "another window" in other.inner_text("#notice")
        assert number(other) == 1
        press(one, "1")
        press(other, "1")
        assert not other.inner_text("#notice"), "the same vote twice is one"
        assert context.faults == []
    votes = [vote.vote for vote in VoteFile(votes_path(file)).votes.values()]
    assert votes == [2, 1]
