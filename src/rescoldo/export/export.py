"""An export from beginning to end: open, plan, check the target, write, verify, rename."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rescoldo.export.formats import FORMATS, Plan, get_format
from rescoldo.export.place import MANIFEST, check_place, new_directory
from rescoldo.export.prompt import prompt_document, write_prompt
from rescoldo.export.source import Source, open_source
from rescoldo.files import sha256, write_json
from rescoldo.version import __version__

KINDS = tuple(FORMATS)
Progress = Callable[[int, int], None]


def export_run(
    run: Path,
    kind: str,
    *,
    output: Path | None = None,
    dtype: str | None = None,
    force: bool = False,
    name: str = "",
    on_progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Export a run. Afterwards `output` has the complete and verified result, or is unchanged.

    Args:
        run: a finished run's directory, or an adapter written by PEFT.
        kind: one of FORMATS.
        output: the directory to create; default RUN/export/KIND.
        dtype: the number format; see DTYPES and default_dtype in the formats' modules.
        force: replace an earlier export.
        name: the model's name in Ollama; default: the run's.
        on_progress: called with the number of tensors written and their total.

    Returns:
        The content of export.json; "name", the model's name in a server; "output", "prompt" and "stop".

    Raises:
        RescoldoError: nothing was written.
    """
    chosen = get_format(kind)
    model = chosen.check_name(name or run.resolve().name)
    source = open_source(run)
    target = output or run / "export" / kind
    document = prompt_document(source)
    plan = chosen.plan(source, dtype, model)
    check_place(target, plan.n_bytes, force=force)
    with new_directory(target) as directory:
        done = 0

        def count(_: Any) -> None:
            nonlocal done
            done += 1
            source.base.tensors.release()
            on_progress(done, plan.n_tensors)

        plan.write(directory, document, count)
        write_prompt(directory, document, plan.calls)
        manifest = _manifest(source, kind, plan, directory)
        write_json(directory / MANIFEST, manifest)
    return {**manifest, "name": model, "output": str(target), "prompt": document["messages"], "stop": document["stop"]}


def _manifest(source: Source, kind: str, plan: Plan, directory: Path) -> dict[str, Any]:
    return {
        "rescoldo_export": kind,
        "version": __version__,
        "dtype": plan.dtype,
        "run": str(source.run),
        "adapter_sha256": source.adapter_sha256,
        "base_model": source.base.spec,
        "base_fingerprint": source.base.fingerprint(),
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(directory.iterdir())
        },
    }
