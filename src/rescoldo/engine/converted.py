"""A disk cache of converted weights: the next start maps them instead of reading and converting the base again.

Used only for large models whose file has no blocks that can be used directly. An entry is one group of linears; its key
is the hash of everything it depends on: the base's fingerprint, the group, the precision and the calibration's input
ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rescoldo.engine.weights import Tensors
from rescoldo.files import cache_root, write_atomic

_VERSION = "1"  # of the conversion; a part of the key
_SPARE = 3  # required free disk space, as a multiple of the model's size
_MODELS = 2  # the cache is limited to the size of this many models, least recently used first out


class ConvertedWeights:
    """The entries of one base model in one precision.

    Args:
        fingerprint: the base's.
        precision: "int8" or "nf4".
        n_bytes: approximate size of all its entries.
        folder: by default in the user's cache directory. $RESCOLDO_WEIGHT_CACHE=0 disables the cache.
    """

    def __init__(self, fingerprint: str, precision: str, n_bytes: int, folder: Path | None = None) -> None:
        self.identity, self.n_bytes = f"{_VERSION}|{fingerprint}|{precision}", n_bytes
        self.folder = folder or cache_root() / "weights"
        self._own: set[Path] = set()  # entries of this model
        self.writes = cache_used()
        self.reads = self.writes
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.writes &= shutil.disk_usage(self.folder).free > _SPARE * n_bytes

    def _path(self, key: str, ranges: torch.Tensor) -> Path:
        text = f"{self.identity}|{key}|".encode() + ranges.contiguous().numpy().tobytes()
        path = self.folder / f"{hashlib.sha256(text).hexdigest()[:32]}.safetensors"
        self._own.add(path)
        return path

    def read(self, key: str, ranges: torch.Tensor) -> Tensors | None:
        """A group's tensors, mapped from disk; None if they are missing or damaged."""
        path = self._path(key, ranges)
        if not self.reads or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                whole = (file.metadata() or {}).get("sha256") == digest(tensors)
            if whole:
                os.utime(path)
                return tensors
        except (OSError, SafetensorError):
            pass
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def write(self, key: str, ranges: torch.Tensor, tensors: Tensors) -> None:
        """Store a group's tensors. Best effort: it only saves time, so failures are ignored."""
        if not self.writes:
            return
        metadata = {"sha256": digest(tensors)}
        try:
            write_atomic(self._path(key, ranges), lambda path: save_file(tensors, path, metadata), durable=False)
        except (OSError, SafetensorError):
            self.writes = False

    def prune(self) -> None:
        """Delete the least recently used entries above the size limit, but none of this model's."""
        with contextlib.suppress(OSError):
            entries = sorted(self.folder.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
            total = 0
            for path in entries:
                total += path.stat().st_size
                if total > _MODELS * self.n_bytes * 1.1 and path not in self._own:
                    path.unlink()


def cache_used() -> bool:
    """Whether converted weights may be stored on disk: not with $RESCOLDO_WEIGHT_CACHE=0."""
    return os.environ.get("RESCOLDO_WEIGHT_CACHE") != "0"


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and values, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}|{tensors[name].dtype}|{tuple(tensors[name].shape)}|".encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
