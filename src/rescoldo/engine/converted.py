"""Converted weights kept on the disk: the next start maps them instead of reading and converting the base again.

Only for large models whose file has no blocks to use as they are. An entry is one group of linears, known by the hash
of everything that it is made of: the base's fingerprint, the group, the precision and the calibration's input ranges.
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

_VERSION = "1"  # of the conversion: another one makes other entries
_SPARE = 3  # the disk must have so many times the model's size free
_MODELS = 2  # so many models' worth of entries are kept, those used last


class ConvertedWeights:
    """The entries of one base model in one precision.

    Args:
        fingerprint: the base's.
        precision: "int8" or "nf4".
        n_bytes: what all its entries take, about.
        folder: where they lie; the user's cache directory where left out. $RESCOLDO_WEIGHT_CACHE=0 turns it off.
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
        """A group's tensors, mapped from the disk, None if they are not there or damaged."""
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
        """Keep a group's tensors. It only saves time; best effort, failures are ignored."""
        if not self.writes:
            return
        metadata = {"sha256": digest(tensors)}
        try:
            write_atomic(self._path(key, ranges), lambda path: save_file(tensors, path, metadata), durable=False)
        except (OSError, SafetensorError):
            self.writes = False

    def prune(self) -> None:
        """Delete the entries used longest ago that are beyond a few models' worth; none of this model's."""
        with contextlib.suppress(OSError):
            entries = sorted(self.folder.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
            total = 0
            for path in entries:
                total += path.stat().st_size
                if total > _MODELS * self.n_bytes * 1.1 and path not in self._own:
                    path.unlink()


def cache_used() -> bool:
    """Whether what was made of weights may be kept on the disk: not with $RESCOLDO_WEIGHT_CACHE=0."""
    return os.environ.get("RESCOLDO_WEIGHT_CACHE") != "0"


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and values, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}|{tensors[name].dtype}|{tuple(tensors[name].shape)}|".encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
