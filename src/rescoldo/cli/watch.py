"""`rescoldo watch`: a run live on a terminal. It only reads: closing it does nothing to the run."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescoldo.cli.status import Output, chosen, describe, tail

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rescoldo.run.status import Status

LOG_LINES = 6
NARROW = 40
EXAMPLE = "Example: rescoldo watch artifacts/mine"


def watch(
    output: Output = None,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print what there is to see, and leave.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One look as a JSON document: status and curves.")] = False,
) -> None:
    """Progress, loss curves, speed, memory and the last log lines, live. Ctrl-C ends the looking, not the run."""
    from rich.console import Console
    from rich.live import Live

    from rescoldo.run.status import read_status, require_run

    where = chosen(output)
    found = require_run(where)
    if json_:
        _print_json(where, found)
        return
    console = Console(highlight=False)
    if once or not console.is_terminal:
        console.print(picture(where, found, console.width, sys.stdout.encoding or ""))
        return
    with contextlib.suppress(KeyboardInterrupt):
        with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
            while True:
                live.update(picture(where, found, console.width, console.encoding), refresh=True)
                if not found.alive:
                    break
                time.sleep(every)
                found = read_status(where)


def picture(where: Path, found: Status, width: int, encoding: str) -> RenderableType:
    """One frame, at most `width` columns wide."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    from rescoldo.report.curve import Series, text_chart
    from rescoldo.report.history import read_history

    width = max(NARROW, min(width, 120))
    history = read_history(where)
    dots = ("·", "●") if "utf" in encoding.lower() else (".", "o")
    series = [Series("training", history.train_loss, dots[0]), Series("validation", history.val_loss, dots[1])]
    share = 1.0 if found.status == "finished" else float(found.state.get("share") or 0.0)
    lines = list(describe(found.as_json()))
    chart = [f"loss by step: {dots[0]} training  {dots[1]} validation", *text_chart(series, width, 11)]
    parts: list[RenderableType] = [
        *(Text(line, overflow="fold") for line in lines),
        ProgressBar(total=1.0, completed=share, width=width),
        Text(""),  # the bar ends no line
        *(Text(line, no_wrap=True) for line in chart),
    ]
    if found.log:
        parts.append(Text("─" * width, style="dim"))
        last = [line for line in tail(Path(found.log), LOG_LINES)[0] if line.strip()]
        parts += [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in last]
    return Group(*parts)


def _print_json(where: Path, found: Status) -> None:
    import json

    from rescoldo.report.history import read_history

    history = read_history(where)
    curves = {"train_loss": history.train_loss, "val_loss": history.val_loss}
    print(json.dumps({**found.as_json(), "curves": curves}, ensure_ascii=False))
