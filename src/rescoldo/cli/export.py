"""`rescoldo export`: a run for llama.cpp, Ollama or transformers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from rescoldo.errors import RescoldoError

EXAMPLE = "export artifacts/mistral --to ollama --create --name mistral-ba"


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's directory, or an adapter written by PEFT.")],
    to: Annotated[str, typer.Option(help="gguf-adapter, ollama, merged (Hugging Face directory) or merged-gguf.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="gguf-adapter: F32, F16, BF16; merged: F32, F16, BF16 (default: the base's own); merged-gguf: "
            "these, Q8_0, Q4_0 (default: F16, of a quantized base Q8_0)."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to create.", show_default="RUN/export/KIND")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    create: Annotated[bool, typer.Option("--create", help="Run `ollama create` (with --to ollama).")] = False,
    name: Annotated[str | None, typer.Option(help="The model's name in Ollama.", show_default="the run's")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")] = False,
) -> None:
    """Write a run's adapter for other programs, with instructions for calling it.

    The result is read back and verified before it gets its name. Merging a 7B takes less than 3 GB of memory.
    """
    from rich.console import Console

    from rescoldo.export import export_run, ollama
    from rescoldo.export.formats import get_format
    from rescoldo.training.progress import Reporter
    from rescoldo.units import gigabytes

    command = get_format(to).create
    if (create or name) and command is None:
        raise RescoldoError("requires --to ollama", where="--create" if create else "--name", fix="--to ollama")
    reporter = Reporter(Console(stderr=True, highlight=False) if json_ else None)
    with reporter.bar("Writing tensors:", 100) as bar:

        def progress(done: int, total: int) -> None:
            bar.advance(100 * done // total - bar.done, f"{done} of {total}")

        document = export_run(run, to, output=output, dtype=dtype, force=force, name=name or "", on_progress=progress)
    directory = Path(document["output"])
    if command is not None:
        model = document["name"]
        words = command(model, directory)
        document["create"] = {"command": words, "done": create and ollama.run_create(words)}
    if json_:
        print(json.dumps(document, ensure_ascii=False))
        return
    size = sum(file["bytes"] for file in document["files"].values())
    reporter.say(f"Written: {directory} ({document['dtype']}, {gigabytes(size)}), read back and verified")
    if command is not None:
        done = document["create"]["done"]
        said = f"The model is in Ollama: ollama run {model}" if done else f"To create it in Ollama: {shlex.join(words)}"
        reporter.say(f"Ollama is not installed here. {said}" if create and not done else said)
    reporter.say(f"How to call it with the prompt that it was trained on: {directory / 'PROMPT.md'}")
