"""`rescoldo doctor`: one line per check, with its remedy."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from rescoldo.cli.options import ConfigFile, read_config, run_options, with_sample_data

EXAMPLE = "doctor --train train.jsonl --val val.jsonl --output artifacts/mine --base-model ollama:mistral"


@run_options
def doctor(
    given: dict[str, Any],
    config: ConfigFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 if there are warnings.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Check what a run needs before it starts: disk, memory, CPU, datasets, base model, libraries, output, sleep.

    Takes the flags of `rescoldo train`; without data and output it uses the demo's. Exit code 0: it can start.
    1: it cannot. 2: with --strict, there are warnings.
    """
    run_config = read_config(with_sample_data(given, config), config)
    from rescoldo.assemble import real_parts
    from rescoldo.doctor.check import MARKS, exit_code
    from rescoldo.doctor.examine import examine
    from rescoldo.units import count

    found = []
    for check in examine(run_config, real_parts()):
        found.append(check)
        if not json_:
            print(f"{MARKS[check.level]} {check.name}: {check.what}", flush=True)
            if check.remedy:
                print(f"    → {check.remedy}", flush=True)
    code = exit_code(found, strict=strict)
    counts = Counter(check.level for check in found)
    if json_:
        document = {"ok": code == 0, "counts": dict(counts), "checks": [asdict(check) for check in found]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        warnings, failures = count(counts["warning"], "warning"), count(counts["failure"], "failure")
        print(f"{counts['ok']} ok, {warnings}, {failures}")
    if code:
        raise typer.Exit(code)
