"""report.html and watch for runs that start, were interrupted, were killed and are finished; in a real browser."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest

from rescoldo.cli.watch import picture
from rescoldo.report.curve import MOST_POINTS, Series, bounds, svg_chart, text_chart, thin
from rescoldo.report.history import read_history
from rescoldo.report.run_page import render, write_report
from rescoldo.run.layout import RUN_FILE
from rescoldo.run.status import read_status
from rescoldo.training.start import train
from tests.browser import open_page
from tests.run.common import rescoldo
from tests.training.fake import PARTS, Silent, config
from tests.training.test_resume import Killed, counting_parts


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    from rescoldo.training.metrics import TensorBoard

    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))


def broken_off(tmp_path, output, **fields):
    """A run that is killed in the middle of its second epoch; its page is written at each checkpoint."""
    left = 11

    def act(kind):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    run = config(tmp_path, output, checkpoint_minutes=0.0, **fields)
    with pytest.raises(Killed):
        train(run, parts=replace(counting_parts(act), write_report=write_report), reporter=Silent())


@pytest.fixture
def finished(tmp_path):
    output = tmp_path / "out <b>&amp;"
    broken_off(tmp_path, output)
    reporter = Silent()
    train(config(tmp_path, output), parts=replace(PARTS, write_report=write_report), reporter=reporter)
    assert "report.html could not" not in reporter.text
    return output


@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(finished, tmp_path, dark):
    """Readable at a phone's width, nothing fetched, no error; light and dark."""
    page = open_page(finished / "report.html", width=360, dark=dark, screenshot=tmp_path / "page.png")
    assert (page.console, page.requests, page.overflow) == ([], [], 0)
    assert page.background == ("rgb(22, 22, 26)" if dark else "rgb(255, 255, 255)")
    for text in ("finished", "Interruptions", "killed or crashed", "epoch", "validation loss", "adapter_model"):
        assert text in page.text
    assert "rescoldo compare --baseline" in page.text
    assert "out <b>&amp;" in page.text  # escaped, not interpreted

    def curves(browser):
        assert browser.locator("svg").count() == 4  # loss, speed, gradient norm, learning rate
        boxes = [browser.locator("svg").nth(i).bounding_box() for i in range(4)]
        assert all(box["width"] > 300 and box["height"] > 100 for box in boxes)
        assert browser.locator("polyline").count() == 5
        size = browser.evaluate("getComputedStyle(document.querySelector('td')).fontSize")
        assert float(size.removesuffix("px")) >= 14

    open_page(finished / "report.html", width=360, act=curves)


def test_of_a_run_that_was_killed(tmp_path):
    output = tmp_path / "out"
    broken_off(tmp_path, output)
    text = (output / "report.html").read_text()  # as the last checkpoint left it
    assert "not yet: the run is not finished" in text
    assert "fake" in text
    assert "polyline" in text


def test_of_a_run_that_starts_and_of_none(tmp_path):
    assert "No optimizer step is done yet." in render(tmp_path)
    (tmp_path / "run.json").write_text('{"config": {"base_model": "<script>alert(1)</script>"}}')
    text = render(tmp_path)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("content", ["", "[]", '{"epoch": 1}\n{"step": "x", "loss": []}\n\0', "[" * 10_000])
def test_damaged_files_make_no_error(tmp_path, content):
    for name in ("run.json", "metrics.jsonl", "timings.jsonl", "state.json", "training_info.json", "exit.json"):
        (tmp_path / name).write_text(content)
    assert "<h2>Settings</h2>" in render(tmp_path)


def test_a_page_that_cannot_be_written_is_said_and_stops_nothing(tmp_path):
    said: list[str] = []
    (tmp_path / "report.html").mkdir()
    write_report(tmp_path, said.append)
    assert len(said) == 1
    assert "report.html could not be written" in said[0]


def test_name_dates_and_warnings(tmp_path, monkeypatch):
    """The run's name as title; one form of dates; warnings with what to do while it runs, as past afterwards."""
    from rescoldo.report import run_page
    from rescoldo.run.status import Status

    output = tmp_path / "mistral-ba"
    output.mkdir()
    trouble = {"time": 1_790_000_000.0, "what": "slow disk", "remedy": "move it"}
    state = {"troubles": [trouble, "damaged", {"time": "x"}], "steps": 0}
    for name, shown, over in (("running", "→ move it", False), ("finished", "slow disk", True)):
        status = Status(str(output), name, base_model="base", started="2026-01-31T14:05:09+0000", state=state)
        monkeypatch.setattr(run_page, "read_status", lambda _, status=status: status)
        page = render(output)
        assert f"<title>mistral-ba: {name} · rescoldo</title>" in page
        assert "<h1>mistral-ba</h1>" in page
        assert shown in page
        assert ("Warnings while it was running" in page) == over
        assert ("move it" in page) != over
        assert "damaged" not in page
        dates = re.findall(r"20\d\d-\d\d-\d\d[^<;:]*", page)
        assert dates
        assert all(re.fullmatch(r"20\d\d-\d\d-\d\d \d\d", date) for date in dates), dates


@pytest.mark.parametrize("values", [[0.1, 2.0], [0.0, 0.0], [0.01], [1e-9, 5.0]])
def test_no_axis_below_zero_for_what_is_never_negative(values):
    series = [Series("training", [(float(i), value) for i, value in enumerate(values)])]
    box = bounds(series)
    assert box is not None
    assert box[2] >= 0
    assert box[3] > box[2]
    assert not any("-" in line.partition("│")[0] for line in text_chart(series, 60, 8)[:-1] if "e-" not in line)
    negative = bounds([Series("training", [(0.0, -1.0), (1.0, 1.0)])])
    assert negative is not None
    assert negative[2] < -1


def test_interruptions_and_what_they_cost(tmp_path):
    lines = [
        {"session": 1, "t": 0.0, "time": "2026-01-01T10:00:00+0000", "event": "start"},
        {"session": 1, "t": 60.0, "time": "2026-01-01T10:01:00+0000", "event": "checkpoint"},
        {"session": 1, "t": 70.0, "time": "2026-01-01T10:01:10+0000", "event": "suspended", "seconds": 3600.0},
        {"session": 1, "t": 100.0, "time": "2026-01-01T11:01:40+0000", "event": "step", "step": 3},
        {"session": 2, "t": 0.0, "time": "2026-01-01T11:02:40+0000", "event": "resume", "checkpoint": "checkpoint-4"},
        {"session": 2, "t": 9.0, "time": "2026-01-01T11:02:49+0000", "event": "stop"},
        {"session": 3, "t": 0.0, "time": "2026-01-01T11:02:59+0000", "event": "resume", "checkpoint": "checkpoint-5"},
    ]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_history(tmp_path)
    assert found.worked == 109.0
    slept, killed, stopped = found.interruptions
    assert (slept.what, slept.away) == ("the machine slept", 3600.0)
    assert (killed.what, killed.away, killed.lost, killed.checkpoint) == (
        "killed or crashed",
        60.0,
        40.0,
        "checkpoint-4",
    )
    assert (stopped.what, stopped.away, stopped.lost) == ("stopped and saved", 10.0, 0.0)


def test_curves():
    assert svg_chart("t", [Series("training", [])]) is None
    many = [(float(x), 1.0) for x in range(10_000)]
    assert len(thin(many)) == MOST_POINTS
    assert (thin(many)[0], thin(many)[-1]) == (many[0], many[-1])
    chart = svg_chart("t", [Series("training", [(1.0, 2.0)]), Series("validation", [(1.0, 1.0)])])
    assert chart is not None
    assert len(chart.lines) == 2
    for _, points, _ in chart.lines:
        x, y = map(float, points.split(","))
        assert 66 <= x <= 470
        assert 12 <= y <= 220


def test_a_chart_in_characters():
    falling = [(float(i), 10.0 - i) for i in range(10)]
    lines = text_chart([Series("training", falling, "."), Series("validation", [(9.0, 5.0)], "o")], 60, 8)
    assert len(lines) == 8
    assert max(map(len, lines)) <= 60
    assert "".join(lines).count("o") >= 1
    drawn = [line.partition("│")[2] for line in lines[:-1]]
    marked = [line.index(".") for line in drawn if "." in line]
    assert marked == sorted(marked)  # down the screen is to the right
    assert text_chart([], 60, 8) == ["(no loss yet)"]


def test_watch_on_80_columns(finished, tmp_path):
    from rich.console import Console

    console = Console(width=80, record=True, force_terminal=False)
    console.print(picture(finished, read_status(finished), 80, "utf-8"))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for part in ("finished", "loss by step", "●", "step 0"):
        assert part in text
    done = rescoldo(tmp_path, "watch", str(finished), "--once")
    assert done.returncode == 0
    assert "loss by step" in done.stdout
    found = json.loads(rescoldo(tmp_path, "watch", str(finished), "--json").stdout)
    assert len(found["curves"]["val_loss"]) == 3  # the first before the training


def test_the_numbers_of_examples_come_from_the_run_s_record(finished):
    record = json.loads((finished / RUN_FILE).read_text())
    assert record["examples"].keys() == {"train", "val"}
    text = html.unescape(render(finished))
    for name, number in record["examples"].items():
        assert f"{record['config'][name]}: {number} examples" in text
    (finished / RUN_FILE).write_text(json.dumps({**record, "examples": {"train": "many"}}))
    assert render(finished).count("? examples") == 2
