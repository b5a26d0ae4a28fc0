"""`rescoldo role`: list, check and create roles."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rescoldo.cli.command import example
from rescoldo.errors import EXIT_FAILURE
from rescoldo.files import quote
from rescoldo.invocation import program

role = typer.Typer(no_args_is_help=True, help="Roles, which define what is trained: list, check and create them.")

Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]


@role.command("list", epilog=example("role list"))
def list_(json_: Json = False) -> None:
    """The built-in roles; --role also takes the path of your own."""
    from rescoldo.role import get_role, role_names

    roles = [get_role(name) for name in role_names()]
    if json_:
        _print_json(
            {
                "roles": [
                    {
                        "name": one.name,
                        "description": one.spec.description,
                        "input": one.spec.input,
                        "answer": one.spec.answer,
                        "serialization": one.spec.serialization,
                        "metric": one.spec.metric,
                        "file": one.source,
                        "sha256": one.digest,
                    }
                    for one in roles
                ]
            }
        )
        return
    width = max(len(one.name) for one in roles)
    for one in roles:
        print(f"{one.name:<{width}}  {one.spec.description}")


@role.command(epilog=example("role check ./release-notes"))
def check(
    name: Annotated[str, typer.Argument(help="A role's folder, file or name.")],
    json_: Json = False,
) -> None:
    """Check whether a role can be trained with: file, samples, prompt, full score for its own answers, low for garbage.

    Exit code 1 if not; 2 if its file cannot be read.
    """
    from rescoldo.doctor.role import check_role

    the_role, results = check_role(name)
    ok = all(result.ok for result in results)
    if json_:
        results_ = [asdict(result) for result in results]
        _print_json({"ok": ok, "name": the_role.name, "sha256": the_role.digest, "results": results_})
    else:
        for result in results:
            mark = "❌" if not result.ok else "⚠️ " if result.fix else "✅"
            for detail in result.details:
                print(f"{mark} {result.name}: {detail}")
            if result.fix:
                print(f"    → {result.fix}")
        if ok:
            data = "--train train.jsonl --val val.jsonl"
            print(f"→ {program()} train --role {quote(name)} {data} --output artifacts/{the_role.name}")
    if not ok:
        raise typer.Exit(EXIT_FAILURE)


@role.command(epilog=example("role new release-notes"))
def new(
    name: Annotated[str, typer.Argument(help="The role's name: lower-case letters, digits, - and _.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New folder. (default ./NAME)")] = None,
    json_: Json = False,
) -> None:
    """Write a commented role that passes the check, to be adapted."""
    from rescoldo.role.skeleton import write_skeleton

    folder = output or Path(name)
    write_skeleton(name, folder)
    files = [str(folder / "role.yaml"), str(folder / "samples.jsonl")]
    if json_:
        _print_json({"name": name, "files": files})
        return
    for file in files:
        print(f"Written: {file}")
    print(f"→ {program()} role check {quote(folder if '/' in str(folder) else f'./{folder}')}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))
