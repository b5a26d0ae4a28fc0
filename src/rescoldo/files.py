"""Files that are either the old version or the new one, never half of each."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError

MAX_JSON = 64 << 20  # bytes; an index of a very large model has a few MB


def cache_root() -> Path:
    """Where caches lie that only save time: $XDG_CACHE_HOME/rescoldo, else ~/.cache/rescoldo."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "rescoldo"


def quote(path: Path | str) -> str:
    """A path as a shell takes it, for commands that are printed."""
    return shlex.quote(str(path))


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` durable (no-op where directories cannot be opened)."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems refuse fsync on directories
    finally:
        os.close(fd)


def write_atomic(path: Path, write: Callable[[Path], None], *, durable: bool = True) -> None:
    """Let `write` fill a temporary sibling, then fsync (if `durable`) and rename it onto `path`.

    Raises:
        OSError: as the system says (disk full, read-only); `path` is then unchanged and the temporary file gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write UTF-8 `text` to `path` atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode("utf-8"))

    write_atomic(path, write, durable=durable)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON to `path` atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins so is Git LFS's note about a file that has not been fetched."""
    return head.startswith(b"version https://git-lfs.github.com/spec/")


def refuse_pointer(path: Path) -> None:
    """Stop at a Git LFS pointer in the place of the file at `path`; other files, and missing ones, pass.

    Raises:
        RescoldoError: it is one.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return
    if is_lfs_pointer(head):
        raise RescoldoError(
            "is a Git LFS pointer: the file itself has not been fetched",
            where=str(path),
            fix=f"git -C {quote(path.parent)} lfs pull --include {quote(path.name)}",
        )


def load_json(path: Path, fix: str = "") -> dict[str, Any]:
    """The JSON object in the file at `path`, which is needed.

    Args:
        path: the file.
        fix: what to do if it cannot be had.

    Raises:
        RescoldoError: it cannot be read, is too long, or is no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise RescoldoError("the file is too large to be what its name says", where=str(path), fix=fix)
        refuse_pointer(path)
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RescoldoError(f"cannot read the file: {error.strerror or error}", where=str(path), fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise RescoldoError(f"this is not valid JSON ({error})", where=str(path), fix=fix) from None
    if not isinstance(value, dict):
        raise RescoldoError("this is JSON, but not an object", where=str(path), fix=fix)
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that may be missing or damaged: None then."""
    try:
        return load_json(path)
    except RescoldoError:
        return None


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
