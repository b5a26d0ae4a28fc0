"""The browser helper sees what it is there to see; otherwise the tests of our pages could not fail."""

from __future__ import annotations

from pathlib import Path

from tests.browser import open_page

BAD = """<!doctype html><meta charset="utf-8"><title>t</title>
<link rel="stylesheet" href="https://example.com/a.css"><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<script src="b.js"></script><div style="width:700px">wide</div>
<script>console.error("spoken"); fetch("http://127.0.0.1:9/c").catch(() => 0); nothing()</script>"""
GOOD = """<!doctype html><meta charset="utf-8"><title>t</title><style>body { background: #fff }
@media (prefers-color-scheme: dark) { body { background: #000 } }</style><p id="p">good day</p>"""


def test_what_a_bad_page_does_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad page.html"
    page.write_text(BAD)
    found = open_page(page, width=360)
    assert "error: spoken" in found.console
    assert any(line.startswith("uncaught: ") and "nothing" in line for line in found.console)
    assert sorted(address.rsplit("/", 1)[1] for address in found.requests) == ["a.css", "b.js", "c"]
    assert found.overflow > 300


def test_a_good_page(tmp_path: Path) -> None:
    page = tmp_path / "good.html"
    page.write_text(GOOD)
    shot = tmp_path / "shot.png"
    light = open_page(page, screenshot=shot, act=lambda page: page.locator("#p").click())
    assert (light.console, light.requests, light.overflow, light.text) == ([], [], 0, "good day")
    assert shot.read_bytes().startswith(b"\x89PNG")
    dark = open_page(page, dark=True)
    assert (light.background, dark.background) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
