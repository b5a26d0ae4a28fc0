"""`rescoldo sweep`: the same run with different settings, on one base model in memory."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from rescoldo.cli.options import LORA, RUN, ConfigFile, read_config, run_options
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.extras import install_command

EXAMPLE = (
    "sweep --train train.jsonl --val val.jsonl --output artifacts/sweep --over lora_r=4,8,16 --over lr=5e-4,1.5e-3"
)


@run_options
def sweep(
    given: dict[str, Any],
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="FIELD=VALUE,VALUE or FIELD=LOW..HIGH, repeated: lora_r, lr, lora_targets (all,q_proj+v_proj), …",
            rich_help_panel=LORA,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of trials that Optuna chooses. (default the whole grid)", min=1, rich_help_panel=RUN),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Score only the first N validation examples.", min=1, rich_help_panel=RUN),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum tokens of a scored answer. (default the role's)", min=1, rich_help_panel=RUN),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed trials again.", rich_help_panel=RUN)] = False,
    config: ConfigFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start even if the machine's checks fail.", rich_help_panel=RUN)
    ] = False,
    json_: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON document on standard output; messages on standard error.", rich_help_panel=RUN
        ),
    ] = False,
) -> None:
    """Train with different settings on one base in memory; report the best by the role's metric, and its cost.

    Tries the grid of all values of --over, or --trials chosen by Optuna. The same command resumes; more values or
    trials extend it. lora_alpha follows the rank unless it is given. Writes sweep.json, .md and, if matplotlib is
    installed, .png.

    Exit code 0: finished, even if single trials failed. 1: all failed. 2: invalid input, nothing done. 3: another
    process is using OUTPUT. 128 + N: stopped by signal N and saved.
    """
    from dataclasses import replace

    from rescoldo.sweep.space import read_space

    space = read_space(over or [])
    both = [name for name in space if given.get(name) is not None]
    if both:
        raise RescoldoError(
            f"{both[0]} is both fixed and swept", where=f"--over {both[0]}", fix="leave one of them out"
        )
    run_config = read_config(given, config)

    from rich.console import Console

    from rescoldo.cli.eval import TerminalConsole
    from rescoldo.role import get_role
    from rescoldo.run.registry import register
    from rescoldo.sweep import sweep as start
    from rescoldo.sweep.report import print_sweep
    from rescoldo.training.progress import Reporter

    register(run_config.output)
    sampling = get_role(run_config.role).sampling
    if max_new_tokens is not None:
        sampling = replace(sampling, max_new_tokens=max_new_tokens)
    result = start(
        run_config,
        space,
        trials=trials,
        limit=limit,
        sampling=sampling,
        force=force,
        retry=retry,
        reporter=Reporter(Console(stderr=json_, highlight=False)),
        console=TerminalConsole(quiet=json_),
    )
    if json_:
        print(json.dumps(result.document, ensure_ascii=False, allow_nan=False))
    else:
        print_sweep(result.document, Console())
        written = [
            path for name in ("sweep.json", "sweep.md", "sweep.png") if (path := run_config.output / name).exists()
        ]
        print(f"Written: {', '.join(map(str, written))}")
        if result.document["best"]["by_score"] and run_config.output / "sweep.png" not in written:
            print(f"no plot: matplotlib is not installed; to get it: {install_command('sweep')}")
    if not result.signal and not result.document["best"]["by_score"]:
        raise typer.Exit(EXIT_FAILURE)
    if result.signal:
        raise typer.Exit(128 + result.signal)
