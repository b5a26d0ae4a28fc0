"""A disk cache of int8's input ranges: the next start with the same base and examples does not measure them again.

The measurement is a forward pass over a few hundred to two thousand tokens, which is most of the loading time of a
small model. An entry's key is the hash of everything that the ranges depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rescoldo.engine.converted import cache_used, digest
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.model import LoraModel
from rescoldo.engine.precisions import is_calibrated
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.engine.weights import OpenedModel, Tensors
from rescoldo.files import cache_root, write_atomic

_VERSION = "1"  # of the measurement; a part of the key
_KEPT = 32  # maximum number of entries, least recently used first out; one has about a thousandth of the model's size


def load_calibrated(
    base: OpenedModel,
    precision: str,
    lora: LoraConfig | None,
    *,
    seed: int,
    calibration: Sequence[Example] | None = None,
    frozen_state: Tensors | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> LoraModel:
    """As LoraModel.load, to the same bits, with caches for converted weights and for input ranges.

    Raises:
        RescoldoError: as LoraModel.load.
    """
    path: Path | None = None
    if is_calibrated(precision) and frozen_state is None and calibration and cache_used():
        path = cache_root() / "ranges" / f"{_key(base, precision, calibration)}.safetensors"
        frozen_state = _read(path)
    known = frozen_state is not None
    model = LoraModel.load(
        base,
        precision,
        lora,
        seed=seed,
        calibration=calibration,
        frozen_state=frozen_state,
        on_progress=on_progress,
        keep_converted=True,
    )
    if path and not known:
        _write(path, model.frozen_state())
    return model


def _key(base: OpenedModel, precision: str, calibration: Sequence[Example]) -> str:
    made_with = (_VERSION, base.fingerprint(), base.config, precision, kernels().name, torch.__version__)
    text = repr((*made_with, [example.tokens for example in calibration]))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> Tensors | None:
    """An entry; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = (file.metadata() or {}).get("sha256") == digest(tensors)
        if whole and tensors:
            os.utime(path)
            return tensors
    except (OSError, SafetensorError):
        pass
    return None


def _write(path: Path, ranges: Tensors) -> None:
    """Store an entry and delete the least recently used ones. It only saves time, so failures are ignored."""
    with contextlib.suppress(OSError, SafetensorError):
        metadata = {"sha256": digest(ranges)}
        write_atomic(path, lambda temporary: save_file(ranges, temporary, metadata), durable=False)
        entries = sorted(path.parent.glob("*.safetensors"), key=lambda entry: -entry.stat().st_mtime)
        for entry in entries[_KEPT:]:
            entry.unlink()
