"""A headless Chromium that opens one HTML file and tells what the page did: for tests of the pages we write.

Chromium is the system's own (Debian: apt install chromium); playwright drives it and downloads no browser.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@dataclass(frozen=True)
class Opened:
    """What a page did.

    Attributes:
        console: its console messages ("error: …") and uncaught errors ("uncaught: …"), in order.
        requests: the addresses it asked for beside itself, none of them answered.
        overflow: pixels by which it is wider than the window; 0 where nothing has to be scrolled sideways.
        text: what can be read on it.
        background: the body's colour, as "rgb(255, 255, 255)".
        screenshot: the picture of the whole page, where one was asked for.
    """

    console: list[str]
    requests: list[str]
    overflow: int
    text: str
    background: str
    screenshot: Path | None


def open_page(
    path: Path,
    *,
    width: int = 1200,
    height: int = 900,
    dark: bool = False,
    screenshot: Path | None = None,
    act: Callable[[Any], None] | None = None,
) -> Opened:
    """Open an HTML file in headless Chromium.

    Args:
        dark: the colour scheme that prefers-color-scheme tells the page.
        screenshot: PNG to write, the whole page.
        act: called with playwright's Page once it is loaded, to click and look; what it does is in the result.

    Skips the test where there is no Chromium, but fails it there where CI is set.
    """
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "there is no Chromium: apt install chromium"
        pytest.skip("there is no Chromium: apt install chromium")
    from playwright.sync_api import Route, sync_playwright

    address = path.resolve().as_uri()
    console: list[str] = []
    requests: list[str] = []

    def answer(route: Route) -> None:
        if route.request.url.split("#")[0] == address:
            route.continue_()
        else:
            requests.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: console.append(f"uncaught: {error}"))
        page.route("**/*", answer)
        page.goto(address, wait_until="load")
        if act:
            act(page)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        text = page.inner_text("body")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        if screenshot:
            page.screenshot(path=screenshot, full_page=True)
        browser.close()
    return Opened(console, requests, int(overflow), text, background, screenshot)
