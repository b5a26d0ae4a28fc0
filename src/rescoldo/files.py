"""Atomic file writing: a file is always either the old version or the new one."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError

MAX_JSON = 64 << 20  # bytes; the index of a very large model has a few MB
STALE_SECONDS = 7 * 86400.0  # after this, another machine's temporary file is assumed to be abandoned

_output: Path | None = None  # an output path that the user has named
_swept: set[Path] = set()  # paths for which stale temporary files have been removed


def home() -> Path | None:
    """The user's home directory; None for a user id without a passwd entry and without $HOME."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def allow_cache_near(output: Path) -> None:
    """Allow caches next to `output`, for users whose own cache directory cannot be written."""
    global _output
    _output = Path(os.path.abspath(output)).parent


def cache_root(*, loadable: bool = False) -> Path:
    """The folder of caches, which only save time; see `choose_cache`."""
    return choose_cache(loadable=loadable)[0]


def choose_cache(*, loadable: bool = False) -> tuple[Path, str]:
    """The folder for caches: the first writable one of $XDG_CACHE_HOME/rescoldo, ~/.cache/rescoldo, .rescoldo-cache
    next to the output directory (see `allow_cache_near`), and a private folder in the temporary one.

    Args:
        loadable: whether shared libraries will be loaded from it: file systems mounted noexec are skipped.

    Returns:
        The folder, which need not exist yet, and why it is not the first one; "" if it is.
    """
    chosen, own = os.environ.get("XDG_CACHE_HOME"), home()
    folders = [Path(chosen) / "rescoldo"] if chosen else []
    folders += [own / ".cache" / "rescoldo"] if own is not None else []
    folders += [_output / ".rescoldo-cache"] if _output is not None else []
    reasons = [] if own is not None or chosen else ["this user has no home directory"]
    for folder in folders:
        why = _unfit(folder, loadable)
        if not why:
            return folder, "; ".join(reasons)
        reasons.append(why)
    return private_folder(), "; ".join(reasons)


def _unfit(folder: Path, loadable: bool) -> str:
    """Why a folder, which need not exist yet, cannot hold a cache; "" if it can."""
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a directory"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{folder} cannot be written"
    try:
        if loadable and os.statvfs(place).f_flag & getattr(os, "ST_NOEXEC", 0):
            return f"{folder} is on a file system from which no programs may be loaded (noexec)"
    except OSError as error:
        return f"{place}: {error.strerror}"
    return ""


def private_folder() -> Path:
    """A folder in the temporary one that nobody else can write to: the same for all processes of this user, unless
    somebody else has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"rescoldo-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):
        found = os.lstat(folder)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return _own_temporary_folder()


@functools.cache
def _own_temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="rescoldo-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def quote(path: Path | str) -> str:
    """A path quoted for a shell, for printed commands."""
    return shlex.quote(str(path))


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` durable (no-op if directories cannot be opened)."""
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


def temporary_beside(path: Path, ending: str = "tmp") -> Path:
    """A name beside `path`, of this process, for what is renamed onto it when it is complete: ".NAME.MACHINE-PID.tmp".
    What killed processes have left there under such names is removed, once for each path."""
    if path not in _swept:
        _swept.add(path)
        remove_stale(path)
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.{ending}")


def remove_stale(path: Path) -> None:
    """Remove the temporary files and directories beside `path` whose processes are not alive any more. Of a process on
    another machine or in another container, or of an earlier version, that cannot be known: what has not been
    written to for a week is removed."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(?:([0-9a-f]{{8}})-)?([0-9]{{1,9}})\.(?:old\.)?tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            found = name.fullmatch(entry.name)
            if not found:
                continue
            if found[1] == _machine():
                stale = not _alive(int(found[2]))
            else:
                stale = time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS
            if stale and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif stale:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


@functools.cache
def _machine() -> str:
    """Within what a process id names one process: this host, and the container."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def write_atomic(path: Path, write: Callable[[Path], None], *, durable: bool = True) -> None:
    """Let `write` fill a temporary sibling, then fsync (if `durable`) and rename it to `path`.

    Raises:
        OSError: from the system (disk full, read-only); `path` is unchanged and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
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


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines to a file that several processes may append to; they are on disk when this returns. A last
    line truncated by a crash is terminated first. A symbolic link is not followed, because it could point to any file.

    Raises:
        OSError: from the system; none of `lines` is in the file.
    """
    is_new = not path.exists()
    refuse_link(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        try:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise
    if is_new:
        sync_directory(path.parent)


def refuse_link(path: Path) -> None:
    """Raise OSError if a file that is appended to is a symbolic link."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON to `path` atomically. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_lfs_pointer(head: bytes) -> bool:
    """Whether this is the beginning of a Git LFS pointer, whose file has not been fetched."""
    return head.startswith(b"version https://git-lfs.github.com/spec/")


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer in place of the file at `path`; other files, and missing ones, pass.

    Raises:
        RescoldoError: it is a pointer.
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
    """The JSON object in the file at `path`, which must exist.

    Args:
        path: the file.
        fix: what the user can do if the file cannot be read.

    Raises:
        RescoldoError: it cannot be read, is too long, or is not a JSON object.
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
    """The JSON object in a file; None if it is missing or damaged."""
    try:
        return load_json(path)
    except RescoldoError:
        return None


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
