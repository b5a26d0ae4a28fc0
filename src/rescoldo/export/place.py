"""A new directory that gets its name only after all of it is written, synced and verified."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import sync_directory, temporary_beside
from rescoldo.units import gigabytes

MANIFEST = "export.json"
_RESERVE = 64 << 20  # bytes that stay free after writing


def check_place(target: Path, n_bytes: int, *, force: bool) -> None:
    """Check before writing whether `n_bytes` can be written to the new directory `target`.

    Raises:
        RescoldoError: it exists already (with `force`: and is not an export), or there is not enough space.
    """
    if target.name in ("", ".."):
        raise RescoldoError(
            "must be a new directory", where=f"--output {target}", fix=f"name one: --output {target}/export"
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RescoldoError("exists, and is not a directory", where=str(target), fix="choose another --output")
    if target.is_dir() and any(target.iterdir()):
        if not _is_export(target):
            raise RescoldoError(
                "is not empty, and not an earlier export", where=str(target), fix="choose a new directory as --output"
            )
        if not force:
            raise RescoldoError("holds an export already", where=str(target), fix="--force, or another --output")
        others = sorted({path.name for path in target.iterdir()} - _exported(target))
        if others:
            raise RescoldoError(
                f"holds files that are not part of an export: {', '.join(others[:4])}",
                where=str(target),
                fix="move that away, or choose another --output",
            )
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RescoldoError(f"{parent} is not a writable directory", where=str(target), fix="another --output")
    free = shutil.disk_usage(parent).free
    if free < n_bytes + _RESERVE:
        raise RescoldoError(
            f"{gigabytes(n_bytes)} would be written, but only {gigabytes(free)} are free",
            where=str(target),
            fix="free some space, choose an --output on another disk, or a smaller --dtype",
            exit_code=EXIT_FAILURE,
        )


def _is_export(directory: Path) -> bool:
    return MANIFEST in _exported(directory)


def _exported(directory: Path) -> set[str]:
    """The names of the files that an export has written there; empty if there is no export."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        return {MANIFEST, *manifest["files"]} if manifest.get("rescoldo_export") else set()
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return set()


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory next to `target`, to be filled; at the end it is synced and replaces `target` with its
    earlier export. After an error `target` is unchanged.

    Raises:
        RescoldoError: the system refuses to write (disk full, read-only).
    """
    temporary = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        sync_directory(temporary)
        old = temporary_beside(target, "old.tmp")
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        sync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RescoldoError(
            f"cannot be written: {error.strerror or error}",
            where=str(target),
            fix="free some space or choose another --output; nothing was left behind",
            exit_code=EXIT_FAILURE,
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
