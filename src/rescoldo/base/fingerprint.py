"""The fingerprint of a base model: a resumed run must continue with the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rescoldo import files
from rescoldo.engine.config import DecoderConfig

_MAX_CACHED = 1000


def _cache_path() -> Path:
    return files.cache_root() / "fingerprints.json"


def _load_cache() -> dict[str, str]:
    cache = files.read_json(_cache_path()) or {}
    return {k: v for k, v in cache.items() if isinstance(v, str)}


def _store(new: dict[str, str]) -> None:
    """Add entries to the cache. Best effort: it only saves time, so failures are ignored."""
    try:
        merged = {**_load_cache(), **new}
        files.write_json(_cache_path(), dict(list(merged.items())[-_MAX_CACHED:]))
    except OSError:
        pass


def file_hash(path: Path, cache: dict[str, str], new: dict[str, str]) -> str:
    """The file's SHA-256: from `cache` if path, size and mtime match; otherwise computed and added to `new`."""
    path = path.resolve()
    status = path.stat()
    key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    if key not in cache:
        cache[key] = new[key] = files.sha256(path)
    return cache[key]


def fingerprint(weight_files: Sequence[Path], config: DecoderConfig) -> str:
    """SHA-256 (hex) over the SHA-256 of each weight file, in file order, and the decoder's config."""
    cache = _load_cache()
    new: dict[str, str] = {}
    digest = hashlib.sha256()
    for path in weight_files:
        digest.update(file_hash(path, cache, new).encode())
    digest.update(json.dumps(config.described(), sort_keys=True).encode())
    if new:
        _store(new)
    return digest.hexdigest()
