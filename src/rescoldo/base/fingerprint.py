"""What a base model is, as one number: a resumed run must go on with the same weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rescoldo import files

if TYPE_CHECKING:
    from rescoldo.base.model import BaseModel

_MAX_CACHED = 1000


def _cache_path() -> Path:
    return files.cache_root() / "fingerprints.json"


def _load_cache() -> dict[str, str]:
    cache = files.read_json(_cache_path()) or {}
    return {k: v for k, v in cache.items() if isinstance(v, str)}


def _store(new: dict[str, str]) -> None:
    """Add to the cache. It only saves time: where it cannot be written, that is all there is to it."""
    try:
        merged = {**_load_cache(), **new}
        files.write_json(_cache_path(), dict(list(merged.items())[-_MAX_CACHED:]))
    except OSError:
        pass


def file_hash(path: Path, cache: dict[str, str], new: dict[str, str]) -> str:
    """The file's SHA-256, from `cache` if its path, size and mtime are the entry's; else computed, into `new`."""
    path = path.resolve()
    status = path.stat()
    key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    if key not in cache:
        cache[key] = new[key] = files.sha256(path)
    return cache[key]


def fingerprint(base: BaseModel) -> str:
    """SHA-256 (hex) over the SHA-256 of each weight file, in file order, and the decoder's config."""
    if base.kind == "hf":
        from rescoldo.base.hf import weight_files

        weights = weight_files(base.path)
    else:
        weights = [base.path]
    cache = _load_cache()
    new: dict[str, str] = {}
    digest = hashlib.sha256()
    for path in weights:
        digest.update(file_hash(path, cache, new).encode())
    digest.update(json.dumps(asdict(base.config), sort_keys=True).encode())
    if new:
        _store(new)
    return digest.hexdigest()
