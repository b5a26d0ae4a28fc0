"""`rescoldo train`: flags over config file over preset over defaults, then a call of rescoldo.training.train."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescoldo.cli.options import RUN, ConfigFile, read_config, run_options
from rescoldo.errors import RescoldoError
from rescoldo.files import quote
from rescoldo.invocation import program

if TYPE_CHECKING:
    from rescoldo.nodes.nodes import Nodes
    from rescoldo.training.config import RunConfig

NODES = "Several machines"
EXAMPLE = "train --train train.jsonl --val val.jsonl --output artifacts/mine --detach"


@run_options
def train(
    given: dict[str, Any],
    config: ConfigFile = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over; the old run is kept as OUTPUT.old-N.", rich_help_panel=RUN)
    ] = False,
    adapter_bin: Annotated[
        bool, typer.Option("--adapter-bin", help="Also write adapter_model.bin.", rich_help_panel=RUN)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start even if doctor's checks fail.", rich_help_panel=RUN)
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
            help="Shell command to run when the run has finished or failed; gets the status as JSON on standard input. "
            "With --detach it is also run if the run was killed.",
            rich_help_panel=RUN,
        ),
    ] = "",
    json_: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON summary on standard output; messages on standard error.", rich_help_panel=RUN
        ),
    ] = False,
    nodes: Annotated[
        str,
        typer.Option(
            help="Number of machines: 4 (up to four, continuing with those that are left) or 2:4 (at least two). "
            "Without --rendezvous: prints what to type on each.",
            rich_help_panel=NODES,
        ),
    ] = "",
    rendezvous: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the machine that leads and has OUTPUT; the same on all. (default port 29400)",
            rich_help_panel=NODES,
        ),
    ] = "",
    share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=100,
            help="Speed of this machine relative to the others. (default measured)",
            rich_help_panel=NODES,
        ),
    ] = None,
    join_seconds: Annotated[
        int,
        typer.Option(
            min=1, max=3600, help="Seconds to wait for further machines when enough have joined.", rich_help_panel=NODES
        ),
    ] = 30,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Restarts after machines were lost, before giving up.", rich_help_panel=NODES)
    ] = 100,
) -> None:
    """Fine-tune with LoRA. The same command again resumes an interrupted run; --restart starts over.

    Exit code 0: finished (with --detach: started). 1: failed. 2: invalid input. 3: another process
    is using OUTPUT. 128 + N: stopped by signal N and saved.
    """
    switches: dict[str, Any] = {"restart": restart, "adapter_bin": adapter_bin, "force": force}
    group: dict[str, Any] = {"nodes": nodes, "rendezvous": rendezvous, "share": share}
    group |= {"join_seconds": join_seconds, "max_restarts": max_restarts}
    if nodes and not rendezvous:
        _say_what_to_type(given, config, {**switches, "restart": False}, group)
        return
    if not nodes and (rendezvous or share):
        flag = "--rendezvous" if rendezvous else "--share"
        raise RescoldoError("is for several machines", where=flag, fix="add --nodes")
    run(given, config, detach=detach, on_exit=on_exit, as_json=json_, group=group if nodes else None, **switches)


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
    group: dict[str, Any] | None = None,
    heading_prefix: str = "",
) -> None:
    """Train with the fields in `given` (None: not given) and exit with the exit code. `group`: the options for several
    machines."""
    from rescoldo.run.registry import register
    from rescoldo.training.config import check_paths

    run_config = read_config(given, config)
    check_paths(run_config)  # before torch is imported, which takes seconds
    several = _nodes(group, detach) if group else None
    if several is None or several.here:
        register(run_config.output)
    if detach:
        from rescoldo.run.detach import start_detached, train_command

        command = train_command(
            {**given, **(group or {})}, config, restart=restart, adapter_bin=adapter_bin, force=force
        )
        _say_started(run_config.output, start_detached(run_config.output, command, on_exit), as_json)
    else:
        _in_foreground(run_config, restart, adapter_bin, force, on_exit, as_json, several, heading_prefix)


def _nodes(group: dict[str, Any], detach: bool) -> Nodes:
    """The nodes that the options describe.

    Raises:
        RescoldoError: a number or an address is invalid.
    """
    from rescoldo.nodes.nodes import nodes_of

    known = dict(group)
    nodes = nodes_of(known.pop("nodes"), known.pop("rendezvous"), **known)
    if detach and not nodes.here:
        raise RescoldoError(
            f"this machine writes no files: {nodes.host} leads",
            where="--detach",
            fix=f"use --detach there only; here: nohup {program()} train … >rescoldo.log &",
        )
    return nodes


def _say_what_to_type(given: dict[str, Any], config: Path | None, switches: dict[str, bool], group: Any) -> None:
    from rescoldo.nodes.address import local_address
    from rescoldo.nodes.nodes import JOIN_SECONDS, MAX_RESTARTS, instructions
    from rescoldo.run.detach import train_command
    from rescoldo.training.config import check_paths

    check_paths(read_config(given, config))
    usual = {
        "rendezvous": group["rendezvous"],
        "share": group["share"],
    }  # differ by machine, or are in the printed line
    usual |= {"join_seconds": JOIN_SECONDS, "max_restarts": MAX_RESTARTS}
    known = {name: value for name, value in group.items() if value and value != usual.get(name)}
    command = train_command({**given, **known}, config, **switches)
    print(instructions([*shlex.split(program()), *command[4:]], group["nodes"], local_address(platform.node())), end="")


def _in_foreground(
    config: RunConfig,
    restart: bool,
    adapter_bin: bool,
    force: bool,
    on_exit: str,
    as_json: bool,
    nodes: Nodes | None,
    heading_prefix: str,
) -> None:
    if nodes is not None:
        _on_several(config, nodes, restart, adapter_bin, force, on_exit, as_json)
        return
    from rich.console import Console

    from rescoldo.assemble import real_parts
    from rescoldo.nodes.together import train_here
    from rescoldo.training.progress import Reporter

    reporter = Reporter(Console(stderr=as_json, highlight=False), heading_prefix=heading_prefix)
    with _telling(on_exit, config.output, reporter.warn):
        result = train_here(
            config, real_parts(), restart=restart, adapter_bin=adapter_bin, force=force, reporter=reporter
        )
    if as_json:
        print(json.dumps(result.summary(), ensure_ascii=False))
    if result.signal:
        raise typer.Exit(128 + result.signal)


@contextmanager
def _telling(on_exit: str, output: Path, warn: Callable[[str], object]) -> Iterator[None]:
    """Runs the user's command `on_exit` when the block ends, for whatever reason; `warn` reports its failure."""
    try:
        yield
    finally:
        if on_exit:
            from rescoldo.run.notify import run_on_exit

            problem = run_on_exit(on_exit, output)
            if problem:
                warn(problem)


def _on_several(
    config: RunConfig, nodes: Nodes, restart: bool, adapter_bin: bool, force: bool, on_exit: str, as_json: bool
) -> None:
    from rescoldo.nodes.launch import Launcher
    from rescoldo.run.layout import LOG_FILE
    from rescoldo.run.streams import unfailing

    launcher = Launcher(config, nodes, adapter_bin=adapter_bin, force=force, quiet=as_json)
    with unfailing(config.output / LOG_FILE), _telling(on_exit, config.output, launcher.say):
        outcome = launcher.run(restart=restart)
    if as_json:
        failed = {"status": "failed", "output": str(config.output), "error": outcome.get("error", "")}
        print(json.dumps(outcome.get("summary") or failed, ensure_ascii=False))
    if outcome["code"]:
        raise typer.Exit(outcome["code"])


def _say_started(output: Path, pid: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"status": "started", "output": str(output), "pid": pid, "log": str(output / "run.log")}))
        return
    print(f"started as process {pid}; it keeps running when this terminal is closed", file=sys.stdout)
    for what, command in (
        ("progress", "status"),
        ("messages", "logs -f"),
        ("live view", "watch"),
        ("save and stop", "stop"),
    ):
        print(f"  {what:<14} {program()} {command} {quote(output)}")
