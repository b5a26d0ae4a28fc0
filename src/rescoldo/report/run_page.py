"""report.html in a run's output directory: a single file without external resources, readable on a phone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from rescoldo.files import quote, read_json, write_text
from rescoldo.invocation import program
from rescoldo.report.curve import Series, svg_chart
from rescoldo.report.history import History, read_history
from rescoldo.run.layout import INFO_FILE, REPORT_FILE, RUN_FILE
from rescoldo.run.status import Status, read_status
from rescoldo.units import clock, count, gigabytes, when

HIDDEN = ("train", "val", "output")  # settings that the page shows elsewhere


def write_report(output: Path, warn: Callable[[str], None]) -> None:
    """Write OUTPUT/report.html from the run's files, atomically. Failures are reported through `warn`, never raised."""
    try:
        write_text(output / REPORT_FILE, render(output))
    except Exception as error:  # a failed report must not end the run
        warn(f"{REPORT_FILE} could not be written: {error}")


def render(output: Path) -> str:
    """The HTML of the page."""
    status, history = read_status(output), read_history(output)
    run, info = read_json(output / RUN_FILE) or {}, read_json(output / INFO_FILE) or {}
    config = run.get("config")
    config = config if isinstance(config, dict) else {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    charts = [
        svg_chart(
            "loss by optimizer step", [Series("training", history.train_loss), Series("validation", history.val_loss)]
        ),
        svg_chart("tokens per second", [Series("training", history.tokens_per_second)]),
        svg_chart("gradient norm", [Series("training", history.gradient_norm)]),
        svg_chart("learning rate", [Series("training", history.learning_rate)]),
    ]
    return environment.get_template("run.html.j2").render(
        status=status,
        history=history,
        name=output.resolve().name or str(output),
        written=when(time.time()),
        started=when(status.started) if status.started else "",
        troubles=[
            (when(float(one.get("time") or 0)), str(one.get("what", "")), str(one.get("remedy", "")))
            for one in _troubles(status)
        ],
        percent=round(100 * status.share),
        facts=list(_facts(status, history)),
        charts=[chart for chart in charts if chart is not None],
        interruptions=[
            (when(one.at), one.what, _time(one.away), _time(one.lost), one.checkpoint or "the start")
            for one in history.interruptions
        ],
        data=_data(config, info, run),
        settings=[(name, _shown(value)) for name, value in config.items() if name not in HIDDEN and value is not None],
        artefacts=_artefacts(output, info),
        next=status.next or f"{program()} status {quote(status.output)}",
    )


def _troubles(status: Status) -> list[dict[str, Any]]:
    """The run's last few warnings, without damaged lines."""
    found = status.state.get("troubles")
    found = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return [one for one in found if isinstance(one.get("time", 0), int | float)][-5:]


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else clock(seconds)


def _facts(status: Status, history: History) -> Any:
    state = status.state
    if status.base_model:
        yield "base model", status.base_model
    if state.get("steps"):
        yield "epoch", f"{state['epoch']} of {state['epochs']}"
        yield "optimizer steps", f"{state['step']} of {state['steps']}"
    if state.get("tokens_per_second"):
        yield "speed", f"{state['tokens_per_second']:.0f} tokens/s"
    if status.alive and state.get("seconds_left") is not None:
        yield "time left", clock(state["seconds_left"])
        yield "finished at about", when(time.time() + state["seconds_left"])
    before = state.get("val_loss_before")
    if before is not None and history.epochs:
        best = min(epoch["val_loss"] for epoch in history.epochs)
        yield "validation loss", f"{before:.4f} before training, {best:.4f} at best"
    elif before is not None:
        yield "validation loss", f"{before:.4f} before training"
    yield "time worked", clock(history.worked)
    if state.get("peak_memory_bytes"):
        yield "peak memory", gigabytes(state["peak_memory_bytes"])
    if status.checkpoint:
        yield "last checkpoint", status.checkpoint


def _data(config: dict[str, Any], info: dict[str, Any], run: dict[str, Any]) -> list[tuple[str, str]]:
    counts = run.get("examples")
    counts = counts if isinstance(counts, dict) else {}
    found = [
        (title, f"{config.get(name, '?')}: {_examples(counts.get(name))}")
        for title, name in (("training", "train"), ("validation", "val"))
    ]
    if info.get("tokens"):
        found.append(("tokens in training", f"{info['tokens']:,}"))
    return found


def _examples(number: Any) -> str:
    return count(number, "example") if isinstance(number, int) else "? examples"


def _artefacts(output: Path, info: dict[str, Any]) -> list[tuple[str, str]]:
    files = info.get("files")
    names = sorted(files) if isinstance(files, dict) else []
    there = [(name, output / str(name)) for name in names]
    found = [(str(name), f"{path.stat().st_size:,} bytes") for name, path in there if path.is_file()]
    return found or [("adapter", "not yet: the run is not finished")]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
