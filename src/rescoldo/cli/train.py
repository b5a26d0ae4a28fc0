"""`rescoldo train`: flags over config file over preset over defaults, then one call of rescoldo.train.train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescoldo.cli.options import RUN, ConfigFile, read_config, run_options
from rescoldo.errors import RescoldoError

if TYPE_CHECKING:
    from rescoldo.train.config import RunConfig

EXAMPLE = "Example: rescoldo train --train train.jsonl --val val.jsonl --output artifacts/mine --detach"


@run_options
def train(
    given: dict[str, Any],
    config: ConfigFile = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start anew; the old run is kept as OUTPUT.old-N.", rich_help_panel=RUN)
    ] = False,
    adapter_bin: Annotated[
        bool, typer.Option("--adapter-bin", help="Write adapter_model.bin too.", rich_help_panel=RUN)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start although doctor's checks fail.", rich_help_panel=RUN)
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Run in the background and log to OUTPUT/run.log; a closed terminal does not end it.",
            rich_help_panel=RUN,
        ),
    ] = False,
    on_exit: Annotated[
        str,
        typer.Option(
            help="Shell command to run when it is done or has failed; gets the status as JSON on its input. "
            "With --detach it is also run when the run was killed.",
            rich_help_panel=RUN,
        ),
    ] = "",
    json_: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON summary on standard output; messages on standard error.", rich_help_panel=RUN
        ),
    ] = False,
) -> None:
    """Fine-tune with LoRA. The same command again resumes an interrupted run; --restart starts anew.

    Exit code 0: finished (with --detach: started). 1: failed. 2: something asked for cannot be. 3: another process
    works in OUTPUT. 128 + N: stopped by signal N and saved.
    """
    switches = {"restart": restart, "adapter_bin": adapter_bin, "force": force}
    run(given, config, detach=detach, on_exit=on_exit, as_json=json_, **switches)


def run(
    given: dict[str, Any],
    config: Path | None,
    *,
    restart: bool,
    as_json: bool,
    adapter_bin: bool = False,
    force: bool = False,
    detach: bool = False,
    on_exit: str = "",
) -> None:
    """Train with the fields in `given` (None: not given) and leave with the exit code."""
    from rescoldo.run.registry import register
    from rescoldo.train.config import check_paths

    run_config = read_config(given, config)
    check_paths(run_config)  # before torch is imported, which takes seconds
    register(run_config.output)
    try:
        if detach:
            from rescoldo.run.detach import start_detached, train_command

            command = train_command(given, config, restart=restart, adapter_bin=adapter_bin, force=force)
            _say_started(run_config.output, start_detached(run_config.output, command, on_exit), as_json)
        else:
            _in_foreground(run_config, restart, adapter_bin, force, on_exit, as_json)
    except RescoldoError as error:
        if as_json:
            print(json.dumps({"status": "failed", "output": str(run_config.output), "error": str(error)}))
        raise


def _in_foreground(
    config: RunConfig, restart: bool, adapter_bin: bool, force: bool, on_exit: str, as_json: bool
) -> None:
    from rich.console import Console

    from rescoldo.train.progress import Reporter
    from rescoldo.train.start import train as start

    reporter = Reporter(Console(stderr=as_json, highlight=False))
    try:
        result = start(config, restart=restart, adapter_bin=adapter_bin, force=force, reporter=reporter)
    finally:
        if on_exit:
            from rescoldo.run.notify import run_on_exit

            problem = run_on_exit(on_exit, config.output)
            if problem:
                reporter.warn(problem)
    if as_json:
        print(json.dumps(result.summary(), ensure_ascii=False))
    if result.signal:
        raise typer.Exit(128 + result.signal)


def _say_started(output: Path, pid: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"status": "started", "output": str(output), "pid": pid, "log": str(output / "run.log")}))
        return
    print(f"started as process {pid}; it goes on when this terminal is closed", file=sys.stdout)
    for what, command in (
        ("how far it is", "status"),
        ("what it says", "logs -f"),
        ("watch it", "watch"),
        ("save and end", "stop"),
    ):
        print(f"  {what:<14} rescoldo {command} {output}")
