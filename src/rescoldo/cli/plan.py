"""`rescoldo plan`: the expected time, memory, disk space and energy of a run, measured on this machine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescoldo.cli.options import ConfigFile, read_config, run_options, with_sample_data
from rescoldo.units import count

if TYPE_CHECKING:
    from rescoldo.doctor.plan import RunPlan

EXAMPLE = "plan --train train.jsonl --val val.jsonl --output artifacts/mine --base-model ollama:mistral"


@run_options
def plan(
    given: dict[str, Any],
    config: ConfigFile = None,
    only: Annotated[bool, typer.Option("--only", help="Measure only the run's own precision.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Estimate time, memory, disk and energy of a run by measuring for about a minute on this machine. Trains nothing.

    Takes the flags of `rescoldo train`. Keep the machine as busy, or as idle, as it will be during the run.
    """
    run_config = read_config(with_sample_data(given, config), config)
    from rich.console import Console

    from rescoldo.assemble import real_parts
    from rescoldo.doctor.plan import make_plan
    from rescoldo.training.prepare import prepare
    from rescoldo.training.progress import Reporter

    quiet = Reporter(Console(stderr=True, highlight=False, quiet=json_))
    prepared = prepare(run_config, real_parts(), Reporter(Console(quiet=True)), restart=False)
    found = make_plan(prepared, all_precisions=not only, say=quiet.say)
    if json_:
        print(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        _show(found, Console(highlight=False))


def _show(found: RunPlan, console: Any) -> None:
    from rich.table import Table

    from rescoldo.units import clock, gigabytes, size

    chosen, now = found.chosen, time.time()
    console.print(
        f"{found.base_model} in {found.precision}: {clock(chosen.seconds)} for {count(found.steps, 'step')}, "
        f"{count(found.epochs, 'epoch')} (measured in {found.measured_in:.0f} s)",
        style="bold",
        markup=False,
    )
    table = Table("T+", "clock", "what")
    for t, what in found.timeline:
        table.add_row(f"T+{clock(t)}", time.strftime("%a %H:%M:%S", time.localtime(now + t)), what)
    console.print(table)
    table = Table("precision", "step", "run", "peak memory", "layers kept", "energy")
    for one in found.forecasts:
        table.add_row(
            f"{one.precision}{' ≈' if one.rough else ''}",
            f"{one.step:.1f} s",
            clock(one.seconds),
            gigabytes(one.peak_memory) + ("" if one.fits else " ✗"),
            str(one.kept_layers),
            "–" if one.kilowatt_hours is None else f"{one.kilowatt_hours:.2f} kWh",
        )
    console.print(table)
    if any(one.rough for one in found.forecasts):
        console.print("≈: measured on short examples, less exact. ✗: does not fit in the free memory.")
    if found.energy:
        console.print(f"energy: {found.energy}", markup=False, soft_wrap=True)
    console.print(f"disk: {size(found.disk_bytes)} of {size(found.disk_free)} free")
    console.print("changes that would shorten it:")
    for change in found.changes:
        console.print(f"  {clock(change['seconds']):>9}  {change['what']}", markup=False)
