"""`rescoldo merge`: the average of several adapters as one adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rescoldo.errors import RescoldoError

EXAMPLE = "merge artifacts/a artifacts/b --weights 0.7,0.3 --output artifacts/both"


def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs, adapters written by PEFT, or epochs of a run (RUN/checkpoint-N): two or more."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create; can be used like a run.")],
    weights: Annotated[str, typer.Option(help="Weight of each: 0.7,0.3. (default all equal)")] = "",
    method: Annotated[
        str,
        typer.Option(
            help="exact: average of the changes to the weights; the ranks add up. factors: average of the A's and of "
            "the B's; the rank stays; for epochs of one run, or runs continued from the same adapter."
        ),
    ] = "exact",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Average several adapters of one base model into one.

    To merge an adapter into its base model see `export --to merged`.
    """
    try:
        numbers = [float(part) for part in weights.split(",")] if weights else None
    except ValueError:
        raise RescoldoError(f"{weights!r} is not a list of numbers", where="--weights", fix="as 0.7,0.3") from None
    from rescoldo.export.average import average_runs

    document = average_runs(runs, output, weights=numbers, method=method)
    if json_:
        print(json.dumps(document, ensure_ascii=False))
        return
    said = ", ".join(f"{part['weight']:.3g} · {part['path']}" for part in document["averaged"]["parts"])
    print(f"Written: {output} (r={document['lora_r']}): {said}")
