"""`rescoldo verify`: one line per check, exit code 0 or 1."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rescoldo.errors import EXIT_FAILURE


def verify(
    output: Annotated[Path, typer.Argument(help="The --output directory of a run.")],
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Check a run's files: hashes, shapes against the base model, finite values. Exit code 0 or 1."""
    from rescoldo.doctor.verify import verify as checks
    from rescoldo.run.sweep import refuse_sweep

    refuse_sweep(output, "verify")
    found = []
    for check in checks(output):
        found.append(check)
        if not json_:
            print(f"{'✅' if check.ok else '❌'} {check.name}: {check.detail}")
    ok = all(check.ok for check in found)
    if json_:
        document = {"output": str(output), "ok": ok, "checks": [asdict(check) for check in found]}
        print(json.dumps(document, ensure_ascii=False))
    if not ok:
        raise typer.Exit(EXIT_FAILURE)
