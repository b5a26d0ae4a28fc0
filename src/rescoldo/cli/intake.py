"""`rescoldo data import` and `data export`: conversion from and to the files of other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescoldo.allowed import check_number
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.units import count

if TYPE_CHECKING:
    from rescoldo.intake.importer import Imported, Preview
    from rescoldo.intake.source import Source

IMPORT_EXAMPLE = "data import customers.xlsx --map prompt=Question,completion=Answer -o customers.jsonl"
EXPORT_EXAMPLE = "data export train.jsonl --to openai -o openai.jsonl --role generic"
FIRST = 3  # records that are shown
ROLE_HELP = "The records' role: name, file or folder."


def import_(
    file: Annotated[
        str, typer.Argument(help="CSV, TSV, XLSX, Parquet, JSON (also compressed), a dataset's folder, or hf:ORG/NAME.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New JSON Lines file to write.")] = None,
    role: Annotated[
        str | None, typer.Option(help=f"{ROLE_HELP} (default: derived from the columns, ba or generic)")
    ] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=COLUMN,…: which column is which field. (default by name)")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="A column to leave out; may be repeated.")] = None,
    sheet: Annotated[str, typer.Option(help="Sheet of a workbook. (default the only one with rows)")] = "",
    split: Annotated[str, typer.Option(help="Split of a dataset: train, test, … (default the only one)")] = "",
    encoding: Annotated[str, typer.Option(help="Encoding of a text: utf-8, cp1252, … (default detected)")] = "",
    separator: Annotated[str, typer.Option(help="Separator of a table's cells; \\t is a tab. (default detected)")] = "",
    header: Annotated[int, typer.Option(help="Line of a table, or row of a sheet, that names the columns.")] = 1,
    drop: Annotated[bool, typer.Option("--drop", help="Leave out rows that cannot be read; each is listed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is detected and check all rows; write nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines. No questions.")] = False,
) -> None:
    """Convert a file from another program to a dataset (JSON Lines).

    Before writing, it shows what was detected, the field for each column, and the first records.
    """
    from rescoldo.intake.columns import parse_map
    from rescoldo.intake.importer import import_rows, preview
    from rescoldo.intake.open import open_source

    if output is None and not dry_run:
        raise RescoldoError("say where to write", where="--output", fix="-o NEW_FILE.jsonl, or --dry-run")
    if output is not None:
        from rescoldo.data.fix import refuse_existing

        refuse_existing(output)
    check_number("--header", header, whole=True, ge=1)
    separator = "\t" if separator in ("\\t", "tab") else separator
    if len(separator) > 1 or separator in ('"', "\n", "\r"):
        raise RescoldoError(f"invalid separator {separator!r}", where="--separator", fix="one character: , ; | or \\t")
    source = open_source(file, sheet=sheet, split=split, encoding=encoding, separator=separator, header=header)
    look = preview(source, role, parse_map(map_ or []), without or [])
    if not json_:
        _show(source, look)
    asks = not (dry_run or yes or json_)
    if asks:
        _ask(output)
    from rich.console import Console

    from rescoldo.training.progress import Reporter

    reporter = Reporter(Console(stderr=True, highlight=False))
    with reporter.bar("Reading:", 100) as bar:

        def progress(rows: int, share: float) -> None:
            if rows % 500 == 0:
                bar.advance(min(99, int(100 * share)) - bar.done, count(rows, "row"))

        done = import_rows(source, look.plan, None if dry_run else output, drop=drop, progress=progress)
        if done.rows >= 500:
            bar.advance(100 - bar.done, count(done.rows, "row"))
    if json_:
        print(json.dumps(_document(source, look, done, None if dry_run else output), ensure_ascii=False))
    else:
        _tell(done, None if dry_run else output)


def export_(
    file: Annotated[Path, typer.Argument(help="Dataset file (JSON Lines).")],
    to: Annotated[str, typer.Option(help="openai (messages), sharegpt (conversations) or alpaca (instruction).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New file to write.")],
    role: Annotated[str, typer.Option(help=ROLE_HELP)] = "generic",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Write a dataset in another program's format. A role's records become its prompt and its answer.

    What the format cannot represent (several turns in Alpaca's, tools) is refused with its line; nothing is dropped.
    """
    from rescoldo.intake.forms import FORMS, export_records
    from rescoldo.role import get_role

    if to not in FORMS:
        raise RescoldoError(f"there is no format {to!r}", where="--to", fix=" or ".join(FORMS))
    records = export_records(file, get_role(role), to, output)
    if json_:
        print(json.dumps({"output": str(output), "form": to, "records": records}))
    else:
        print(f"{output}: {count(records, 'record')} in {to}'s format")


def _ask(output: Path | None) -> None:
    """Raise RescoldoError if there is no terminal for the question; typer.Exit if the answer is no."""
    if not sys.stdin.isatty():
        raise RescoldoError(
            "there is no terminal to ask for confirmation", fix="--yes writes it, --dry-run only checks"
        )
    if not typer.confirm(f"Write {output}?", default=True):
        print("nothing was written")
        raise typer.Exit(EXIT_FAILURE)


def _show(source: Source, look: Preview) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rescoldo.intake.importer import first_lines
    from rescoldo.words import printable

    console = Console(highlight=False)
    print(f"{source.path}: {source.kind}" + "".join(f"; {note}" for note in source.notes))
    print(f"Recognized as {look.plan.form}; role {look.plan.role.name}")
    table = Table(box=None, pad_edge=False)
    for name in ("column", "becomes", "first value"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=40)
    for column in look.columns:
        values = (row.values.get(column) for row in look.rows if row.values)
        first = next((value for value in values if value not in (None, "")), "")
        shown = first if isinstance(first, str) else json.dumps(first, ensure_ascii=False, default=str)
        becomes = look.plan.target(column) or "(left out)"
        table.add_row(*(Text(printable(text)[:200].replace("\n", " ")) for text in (column, becomes, shown)))
    console.print(table)
    print("First records:")
    for line in first_lines(look.records, FIRST, max(60, 2 * console.width)):
        print(f"  {printable(line)}")


def _document(source: Source, look: Preview, done: Imported, output: Path | None) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "kind": source.kind,
        "notes": list(source.notes),
        "role": look.plan.role.name,
        "form": look.plan.form,
        "columns": {column: look.plan.target(column) for column in look.columns},
        "rows": done.rows,
        "records": done.records,
        "left_out": [{"where": where, "what": what} for where, what in done.faults],
        "carried": [{"where": where, "what": what} for where, what in done.unread],
        "output": str(output) if output else None,
    }


def _tell(done: Imported, output: Path | None) -> None:
    for where, what in done.faults:
        print(f"✂️  {where}: row left out: {what}")
    if done.unread:
        where, what = done.unread[0]
        many = count(done.unread_records, "record")
        print(f"⚠️  {many} imported unchanged, which train would refuse: {where}: {what}")
    left_out = f", {count(done.rows - done.records, 'row')} left out" if done.rows > done.records else ""
    print(f"{output or 'nothing is written'}: {count(done.records, 'record')} of {count(done.rows, 'row')}{left_out}")
