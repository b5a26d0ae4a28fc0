"""The runs that this user has started on this machine: one small file each, so that no locking is needed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from rescoldo.files import home, private_folder, read_json, write_json
from rescoldo.run.layout import RUN_FILE

MAX_DEPTH = 3  # levels of folders that `find_runs` searches


def registry_folder() -> Path:
    """$XDG_STATE_HOME/rescoldo/runs, else ~/.local/state/rescoldo/runs; if that does not exist and cannot be created, a
    private folder in the temporary one."""
    root, own = os.environ.get("XDG_STATE_HOME"), home()
    state = Path(root) if root else own / ".local" / "state" if own is not None else None
    if state is None:
        return private_folder() / "runs"
    folder = state / "rescoldo" / "runs"
    if folder.exists() or root:
        return folder
    place = next((parent for parent in folder.parents if parent.exists()), state)
    return folder if os.access(place, os.W_OK) else private_folder() / "runs"


def register(output: Path) -> None:
    """Register a run's output directory. Failures are ignored: an unwritable home must not stop a run."""
    path = str(Path(os.path.abspath(output)))
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    with contextlib.suppress(OSError, RuntimeError):
        write_json(registry_folder() / f"{name}.json", {"output": path})


def known_runs() -> list[Path]:
    """The registered output directories that still exist, the latest first; the others are removed from the
    registry."""
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError, RuntimeError):
        for entry in registry_folder().glob("*.json"):
            with contextlib.suppress(OSError):  # an unreadable one must not hide others
                output = (read_json(entry) or {}).get("output")
                if isinstance(output, str) and Path(output).is_dir():
                    found.append((entry.stat().st_mtime, Path(output)))
                else:
                    entry.unlink()
    return [path for _, path in sorted(found, reverse=True)]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The output directories inside `folders`, at most MAX_DEPTH levels deep."""
    found: list[Path] = []
    for folder in folders:
        level = [folder]
        for _ in range(MAX_DEPTH + 1):
            found += [path for path in level if os.path.isfile(path / RUN_FILE)]  # False without permission
            below: list[Path] = []
            for path in level:
                with contextlib.suppress(OSError):
                    below += sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink())
            level = below
    return found
