"""`rescoldo data`: dataset files: import, audit, fix, split, draft, review."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rescoldo.cli.command import example
from rescoldo.cli.draft import DRAFT_EXAMPLE, REVIEW_EXAMPLE, draft_, review_
from rescoldo.cli.intake import EXPORT_EXAMPLE, IMPORT_EXAMPLE, export_, import_
from rescoldo.errors import EXIT_FAILURE, RescoldoError

data = typer.Typer(no_args_is_help=True, help="Make, check, fix and split datasets (JSON Lines).")

RoleOption = Annotated[str, typer.Option(help="The records' role: name, file or folder.")]
data.command("import", epilog=example(IMPORT_EXAMPLE))(import_)
data.command("draft", epilog=example(DRAFT_EXAMPLE))(draft_)
data.command("review", epilog=example(REVIEW_EXAMPLE))(review_)
data.command("export", epilog=example(EXPORT_EXAMPLE))(export_)
SHOWN = 100  # maximum faults or changes printed; --json has all of them


@data.command(epilog=example("data audit train.jsonl val.jsonl"))
def audit(
    files: Annotated[list[Path], typer.Argument(help="Dataset files; several are also checked for shared inputs.")],
    role: RoleOption = "ba",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Report each fault with its file, line and field. Exit code 1 if there are errors; 0 with warnings only."""
    from rescoldo.data.audit import audit as check
    from rescoldo.data.records import fix_command
    from rescoldo.files import quote
    from rescoldo.invocation import program
    from rescoldo.role import get_role
    from rescoldo.role.fault import errors
    from rescoldo.role.role import FOREIGN

    the_role = get_role(role)
    found = check(files, the_role)
    if json_:
        _print_json(found.as_json())
    else:
        lines = []
        for fault in found.faults:
            mark = "❌" if fault.level == "error" else "⚠️ "
            lines.append(f"{mark} {fault.where}: {fault.what}{' (fixable)' if fault.fixable else ''}")
        _print_some(lines)
        for file in found.as_json()["files"]:
            print(
                f"{file['file']}: {file['records']} records, {file['errors']} errors, {file['warnings']} warnings, "
                f"{file['fixable']} fixable"
            )
        if found.across:
            print(f"between the files: {len(found.across)} findings")
        fixable = next((fault for fault in found.faults if fault.fixable), None)
        if fixable:
            print(f"→ {fix_command(Path(fixable.file), the_role)}")
        elif found.ok:
            print("✅ no errors")
        if generic := next((fault for fault in found.faults if fault.code == FOREIGN), None):
            print(f"→ {program()} data audit {quote(generic.file)} --role generic")
        elif unusable := next((fault for fault in errors(found.faults) if not fault.fixable and fault.line), None):
            print(f"→ {fix_command(Path(unusable.file), the_role, drop=True)} leaves such lines out, and names them")
    if not found.ok:
        raise typer.Exit(EXIT_FAILURE)


@data.command(epilog=example("data fix old.jsonl -o old_fixed.jsonl"))
def fix(
    file: Annotated[Path, typer.Argument(help="Dataset file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New file to write.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the file; the old one is kept as .bak.")
    ] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Remove lines that cannot be fixed; each is listed.")] = False,
    role: RoleOption = "ba",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Fix the faults for which the role has a rule, remove repeated examples; report each change.

    With ba: IDs, priorities' spelling, YAML-string lists. In a conversation: an answer before the first question.

    Lines that only a person can fix are kept (exit code 1 if there are any), or removed with --drop.
    """
    from rescoldo.data.fix import fix_file, refuse_existing, write_fixed
    from rescoldo.data.records import fix_command
    from rescoldo.role import get_role

    if (output is None) != in_place:
        raise RescoldoError("say where to write", where="--output", fix="either -o NEW_FILE, or --in-place")
    if output is not None:
        refuse_existing(output)
    the_role = get_role(role)
    fixed = fix_file(file, the_role, drop=drop)
    written = write_fixed(fixed, file, output, in_place=in_place)
    if json_:
        _print_json(
            {
                "ok": not fixed.left,
                "output": str(written),
                "records": fixed.records,
                "changes": [asdict(change) for change in fixed.changes],
                "left": [asdict(fault) for fault in fixed.left],
                "dropped": [asdict(fault) for fault in fixed.dropped],
            }
        )
    else:
        _print_some(
            [f"🔧 {file}:{c.line}{', ' + c.field if c.field else ''}: {c.what}" for c in fixed.changes]
            + [f"✂️  {fault.where}: line left out: {fault.what}" for fault in fixed.dropped]
            + [f"❌ {fault.where}: {fault.what}" for fault in fixed.left]
        )
        left_out = f", {len(fixed.dropped)} lines left out" if drop else ""
        print(
            f"{written}: {fixed.records} records, {len(fixed.changes)} changes{left_out}, {len(fixed.left)} errors left"
        )
        if fixed.left:
            print(f"→ {fix_command(file, the_role, drop=True)} leaves those lines out")
    if fixed.left:
        raise typer.Exit(EXIT_FAILURE)


@data.command(epilog=example("data split all.jsonl --val 0.2 --train-out train.jsonl --val-out val.jsonl"))
def split(
    files: Annotated[list[Path], typer.Argument(help="Dataset files; several are split as if they were one.")],
    train_out: Annotated[Path, typer.Option(help="New file for training.")],
    val_out: Annotated[Path, typer.Option(help="New file for validation.")],
    val: Annotated[float, typer.Option(help="Fraction of the records for validation.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 42,
    role: RoleOption = "ba",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Split a dataset by seed; equal and nearly equal inputs stay on one side."""
    from rescoldo.data.split import split_files
    from rescoldo.role import get_role

    the_role = get_role(role)
    done = split_files(files, val, seed, train_out, val_out, the_role)
    if json_:
        _print_json(
            {
                "train": {"file": str(train_out), "records": len(done.train)},
                "val": {"file": str(val_out), "records": len(done.val)},
                "grouped": done.grouped,
                "seed": seed,
            }
        )
        return
    print(f"{train_out}: {len(done.train)} records")
    print(f"{val_out}: {len(done.val)} records")
    if done.grouped:
        same = f"the same or nearly the same {the_role.input}"
        print(f"{done.grouped} records have {same} as another one and stay on the same side")


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _print_some(lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        print(line)
    if len(lines) > SHOWN:
        print(f"… and {len(lines) - SHOWN} more (--json has all)")
