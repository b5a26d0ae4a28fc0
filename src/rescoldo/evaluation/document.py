"""Evaluations and comparisons on the disk: the JSON, the reports beside it, the answers while they are made."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.evaluation.verdict import with_verdict
from rescoldo.files import sha256, write_json, write_text
from rescoldo.models.cache import PredictionCache
from rescoldo.role import Role
from rescoldo.version import __version__


@contextmanager
def partial_cache(output: Path | None, reuse: Sequence[Path] = ()) -> Iterator[PredictionCache | None]:
    """The cache beside an output file (FILE.partial.jsonl); removed when the block ends well. Without output one in
    memory, None if there is nothing to reuse either.

    Args:
        reuse: documents whose answers are known, too.
    """
    if output is None and not reuse:
        yield None
        return
    cache = PredictionCache(output.with_name(output.name + ".partial.jsonl") if output else None)
    for path in reuse:
        cache.reuse(read_document(path))
    yield cache
    cache.remove()


def read_document(path: Path) -> dict[str, Any]:
    """An evaluation or comparison that was written before.

    Raises:
        RescoldoError: there is none in this file.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("models"), dict):
        raise RescoldoError("is no evaluation and no comparison", where=str(path), fix="name the --output of one")
    return document


def write_document(document: dict[str, Any], output: Path) -> list[Path]:
    """Write an evaluation or comparison as JSON and, beside it, its reports, in the language that its metadata name.
    The verdict is computed again, from the votes and judgements that are in it now. Returns the reports' paths.

    Raises:
        RescoldoError: it cannot be written.
    """
    from rescoldo.evaluation.page import page
    from rescoldo.evaluation.report import markdown

    document = with_verdict(document)
    reports = reports_beside(output)
    try:
        write_json(output, document)  # first: reports without it would be taken for somebody else's
        write_text(reports[0], markdown(document))
        write_text(reports[1], page(document))
    except OSError as error:
        raise RescoldoError(
            f"cannot be written: {error.strerror or error}", where=str(output), exit_code=EXIT_FAILURE
        ) from None
    return reports


def reports_beside(output: Path) -> list[Path]:
    """Where the reports of an output file lie: Markdown, HTML."""
    if output.suffix == ".json":
        return [output.with_suffix(".md"), output.with_suffix(".html")]
    return [output.with_name(output.name + ending) for ending in (".md", ".html")]


def metadata(
    role: Role,
    dataset: Path,
    examples: int,
    limit: int | None,
    training_set: str | None,
    started: float,
    *,
    output: Path | None,
    lang: str,
) -> dict[str, Any]:
    """The document's `metadata`; `started` in seconds since the epoch, `lang` of its reports."""
    return {
        "rescoldo": __version__,
        "role": role.name,
        "role_option": role.option,
        "dataset": str(dataset),
        "dataset_sha256": sha256(dataset),
        "examples": examples,
        "limit": limit,
        "training_set": training_set,
        "output": str(output) if output else None,
        "lang": lang,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "wall_seconds": round(time.time() - started, 1),
    }


def _check_ours(output: Path, dataset: Path) -> None:
    known = False
    if output.is_file():  # a device may be read for ever
        with suppress(RescoldoError):
            known = bool(read_document(output))
    if not known or output.resolve() == dataset.resolve():
        raise RescoldoError(
            "exists and is no evaluation: it is not overwritten",
            where=f"--output {output}",
            fix="choose another name",
        )


def checked_output(output: Path, dataset: Path) -> Path:
    """Find out before the work, not after it, that the result cannot be written. Returns `output`.

    Raises:
        RescoldoError: it is a directory, something else than a document of ours, or not writable; a report beside it
            would take the place of a file that is none.
    """
    if output.is_dir():
        raise RescoldoError("is a directory", where=f"--output {output}", fix="name a file, for example eval.json")
    if output.exists():
        _check_ours(output, dataset)
    elif found := next(filter(Path.exists, reports_beside(output)), None):
        raise RescoldoError(
            f"the report beside it would overwrite {found}, which belongs to no evaluation",
            where=f"--output {output}",
            fix=f"choose another name, or move {found.name} away",
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        probe = output.with_name(f".{output.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RescoldoError(f"cannot be written: {error.strerror or error}", where=f"--output {output}") from None
    return output
