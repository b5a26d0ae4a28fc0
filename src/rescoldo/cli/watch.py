"""`rescoldo watch`: a live view of a run on a terminal. It only reads: closing it does not affect the run."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescoldo.cli.status import Output, chosen, describe, renew_report, tail

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rescoldo.run.status import Status

LOG_LINES = 6
CHART_LINES = 11
NARROW = 40
EXAMPLE = "watch artifacts/mine"


def watch(
    output: Output = None,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between updates.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print status and curves once, as one JSON document.")] = False,
) -> None:
    """Live progress, loss curves, speed, memory and last log lines. q or Ctrl-C closes the view, not the run."""
    from rich.console import Console
    from rich.live import Live

    from rescoldo.run.status import read_status, require_run

    where = chosen(output)
    found = require_run(where)
    if json_:
        _print_json(where, found)
        return
    console = Console(highlight=False)
    if not once and console.is_terminal:
        with contextlib.suppress(KeyboardInterrupt), keys() as quits:
            # on the alternate screen: the terminal's content is restored, and a resized terminal is redrawn
            with Live(console=console, auto_refresh=False, screen=True) as live:
                while found.alive:
                    width, height = console.size
                    live.update(picture(where, found, width, console.encoding, height), refresh=True)
                    if quits(every):
                        break
                    found = read_status(where)
    renew_report(found)
    console.print(picture(where, found, console.width, sys.stdout.encoding or ""))


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], bool]]:
    """Reads keys unbuffered inside the block. The yielded function waits the given seconds and returns whether q was
    pressed."""
    try:
        import termios
        import tty

        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        if os.tcgetpgrp(fd) != os.getpgrp():
            raise OSError  # in the background, where changing the terminal's mode would stop the process
        tty.setcbreak(fd)
    except (ImportError, OSError, ValueError, termios.error):  # there is no terminal to read from
        yield _no_key
        return

    def quits(seconds: float) -> bool:
        ready, _, _ = select.select([fd], [], [], seconds)
        return bool(ready) and bool({b"q", b"Q", b""} & {os.read(fd, 1)})  # b"": the terminal has closed

    try:
        yield quits
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def picture(where: Path, found: Status, width: int, encoding: str, height: int = 100) -> RenderableType:
    """One frame, at most `width` columns wide, and on a usual terminal at most `height` lines high."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    from rescoldo.report.curve import Series, text_chart
    from rescoldo.report.history import read_history

    width = max(NARROW, min(width, 120))
    history = read_history(Path(found.trial or where))
    dots = ("·", "●") if "utf" in encoding.lower() else (".", "o")
    series = [Series("training", history.train_loss, dots[0]), Series("validation", history.val_loss, dots[1])]
    lines = list(describe(found))
    room = height - sum(-(-len(line) // width) for line in lines) - 3  # the bar, the legend, the rule before the log
    log_lines = min(LOG_LINES, max(2, room // 3))
    rows = min(CHART_LINES, max(5, room - log_lines))
    chart = [f"loss by step: {dots[0]} training  {dots[1]} validation", *text_chart(series, width, rows)]
    parts: list[RenderableType] = [
        *(Text(line, overflow="fold") for line in lines),
        ProgressBar(total=1.0, completed=found.share, width=width),
        Text(""),  # the bar does not end its line
        *(Text(line, no_wrap=True) for line in chart),
    ]
    if found.log:
        parts.append(Text("─" * width, style="dim"))
        last = [line for line in tail(Path(found.log), log_lines)[0] if line.strip()]
        parts += [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in last]
    return Group(*parts)


def _print_json(where: Path, found: Status) -> None:
    import json

    from rescoldo.report.history import read_history

    history = read_history(Path(found.trial or where))
    curves = {"train_loss": history.train_loss, "val_loss": history.val_loss}
    print(json.dumps({**found.as_json(), "curves": curves}, ensure_ascii=False))
