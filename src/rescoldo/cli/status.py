"""`rescoldo status`, `logs`, `stop`, `list`: observe and stop runs. They do not import torch, so they are fast."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import quote
from rescoldo.invocation import program

if TYPE_CHECKING:
    from rescoldo.run.status import Status

Output = Annotated[Path | None, typer.Argument(help="The --output directory of a run. (default the latest)")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]

SILENT_SECONDS = 60.0  # a live run that has not updated its state for this long is reported; it does so every second
TAIL_BYTES = 1 << 20


def chosen(output: Path | None) -> Path:
    """The given run, or else the one that was started last on this machine.

    Raises:
        RescoldoError: there is none.
    """
    from rescoldo.run.registry import known_runs

    if output is not None:
        return output
    runs = known_runs()
    if not runs:
        raise RescoldoError("no run was started on this machine", fix="name the --output directory of a run")
    return runs[0]


def status(output: Output = None, json_: AsJson = False) -> None:
    """Show a run: state, step, loss, speed, time left, memory, last checkpoint; and why, if it died.

    Exit code 0: it runs, is finished, or was stopped and saved. 1: it failed or died. 2: there is no run.
    """
    from rescoldo.run.status import require_run

    found = require_run(chosen(output))
    renew_report(found)
    if json_:
        print(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        for line in describe(found):
            print(line)
    if found.kind.failed:
        raise typer.Exit(EXIT_FAILURE)


def renew_report(found: Status) -> None:
    """Rewrite report.html if it still shows a run as running that has ended without updating it (nobody records the
    death of a killed foreground run)."""
    from rescoldo.run.layout import REPORT_FILE

    if not found.kind.ended:
        return
    where = Path(found.trial or found.output)
    with contextlib.suppress(OSError):
        text = (where / REPORT_FILE).read_text(encoding="utf-8", errors="replace")
        if f'class="state {found.status}"' not in text:
            from rescoldo.report.run_page import write_report

            write_report(where, lambda text: None)


def describe(found: Status) -> Iterator[str]:
    """The lines that `status` prints."""
    from rescoldo.units import clock, gigabytes, when

    state, kind = found.state, found.kind
    now = kind.active and kind.reports
    phase = f", {state['phase']}" if now and state else ""
    pid = f" (process {found.pid})" if found.pid and kind.alive else ""
    yield f"{kind.mark} {found.status}{phase}{pid}: {found.output}"
    if found.sweep:
        yield f"  sweep        {found.sweep}"
    if found.why:
        yield f"  reason       {found.why}"
    if found.base_model:
        yield f"  base model   {found.base_model}, started {when(found.started)}"
    if state.get("steps"):
        loss = "" if state["loss"] is None else f", loss {state['loss']:.4f}"
        loss += "" if state["val_loss"] is None else f", validation {state['val_loss']:.4f}"
        before = state.get("val_loss_before")
        loss += (
            ""
            if before is None
            else f" ({before:.4f} before training)"
            if state["val_loss"] is not None
            else (f", validation {before:.4f} before training")
        )
        yield f"  epoch        {state['epoch']} of {state['epochs']}, step {state['step']} of {state['steps']}{loss}"
    if kind.reports and state.get("tokens_per_second"):
        yield f"  speed        {state['tokens_per_second']:.0f} tokens/s"
    left = state.get("seconds_left")
    if now and left is not None:
        guess = "" if state.get("tokens_per_second") else " (estimated: no training step is done yet)"
        yield f"  time left    {clock(left)}, finished at about {when(time.time() + left)}{guess}"
    if now and state and time.time() - state["updated"] > SILENT_SECONDS:
        yield f"  ⚠️  no update for {clock(time.time() - state['updated'])}"
        yield "      → its container may be frozen, the machine overloaded, or a disk may not respond"
    if now and state.get("memory_bytes"):
        yield (
            f"  memory       {gigabytes(state['memory_bytes'])}, at most {gigabytes(state['peak_memory_bytes'])}, "
            f"{gigabytes(state['free_bytes'])} free"
        )
    if found.checkpoint:
        yield f"  checkpoint   {found.checkpoint}, {clock(found.checkpoint_age or 0)} ago"
    if state.get("checkpoint_error"):
        yield f"  ⚠️  the last checkpoint could not be written: {state['checkpoint_error']}"
    for trouble in state.get("troubles", [])[-3:]:
        yield f"  ⚠️  {when(trouble.get('time', 0))}: {trouble.get('what')}"
        if kind.active:  # later nothing can be done about it
            yield f"      → {trouble.get('remedy')}"
    if found.log:
        yield f"  log          {found.log}"
    if found.next:
        yield f"  → {found.next}"


def logs(
    output: Output = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of last lines.")] = 40,
    json_: AsJson = False,
) -> None:
    """Print the log of a detached run. Ctrl-C stops printing, not the run."""
    from rescoldo.run.status import read_status, require_run

    where = chosen(output)
    found = require_run(where)
    if found.log is None:
        what = "this run was not detached: it writes to its own terminal"
        fix = f"{program()} status {quote(where)}; its losses are in metrics.jsonl"
        raise RescoldoError(what, where=str(where), fix=fix)
    path = Path(found.log)
    if json_:
        print(json.dumps({"output": str(where), "log": str(path), "lines": tail(path, lines)[0]}, ensure_ascii=False))
        return
    text, at = tail(path, lines)
    for line in text:
        print(line)
    while follow:
        alive = read_status(where).alive
        at = _print_from(path, at)
        if not alive:
            break
        time.sleep(0.3)


def tail(path: Path, count: int) -> tuple[list[str], int]:
    """The last `count` lines of a text file (of its last MiB), and its size."""
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            file.seek(max(0, end - TAIL_BYTES))
            text = file.read(end - file.tell()).decode("utf-8", errors="replace")
    except OSError:
        return [], 0
    return (text.splitlines()[-count:] if count else []), end


def _print_from(path: Path, at: int) -> int:
    """Print what was added after position `at`; a file shorter than that was truncated."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        file.seek(at if at <= end else 0)
        data = file.read()
        at = file.tell()
        if data:
            print(data.decode("utf-8", errors="replace"), end="", flush=True)
    return at


def stop(
    output: Output = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until it has stopped; 0: do not wait.")
    ] = 3600.0,
    json_: AsJson = False,
) -> None:
    """Make a run save a checkpoint and exit, and wait for that. The same train command resumes it later.

    It stops after the current micro-batch. Exit code 0: it has stopped. 1: it is still running.
    """
    from rescoldo.run.signals import send_to
    from rescoldo.run.status import read_status, require_run

    where = chosen(output)
    found = require_run(where)
    if found.kind.elsewhere:
        raise RescoldoError(found.why, where=str(where), fix="log in there", exit_code=EXIT_FAILURE)
    sent = found.alive and send_to(where, signal.SIGTERM)
    if sent and not json_:
        print(f"process {found.pid} is saving and will end …", flush=True)
    until = time.monotonic() + timeout
    while found.alive and time.monotonic() < until:
        time.sleep(0.1)
        found = read_status(where)
    if json_:
        print(json.dumps({**found.as_json(), "stopped_now": sent}, ensure_ascii=False))
    else:
        for line in describe(found):
            print(line)
    if found.alive:
        raise typer.Exit(EXIT_FAILURE)


def list_(
    folders: Annotated[list[Path] | None, typer.Argument(help="Further folders to search.")] = None,
    json_: AsJson = False,
) -> None:
    """The runs that were started on this machine, the latest first, and those in the given folders."""
    from rescoldo.run.registry import find_runs, known_runs
    from rescoldo.run.status import read_status

    for folder in folders or []:
        if not folder.is_dir():
            raise RescoldoError("there is no such folder", where=str(folder), fix="name a folder that contains runs")
    seen: dict[str, Any] = {}
    for path in [*known_runs(), *find_runs(folders or [])]:
        found = read_status(path)
        renew_report(found)
        if found.kind.exists:
            seen.setdefault(str(path.resolve()), found)
    if json_:
        print(json.dumps({"runs": [found.as_json() for found in seen.values()]}, ensure_ascii=False))
        return
    for found in seen.values():
        share = f"{100 * found.share:.0f} %"
        print(f"{found.kind.mark} {found.status:<9} {share:>5}  {found.base_model:<24} {found.output}")
    if not seen:
        print(f"no run is known here; `{program()} list FOLDER` searches a folder")
