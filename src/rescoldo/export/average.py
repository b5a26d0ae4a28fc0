"""The average of several runs, or of a run's epochs, as one adapter in a new directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rescoldo.adapter import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    read_adapter,
    read_calibration,
    write_adapter,
    write_calibration,
)
from rescoldo.adapter.average import METHODS, average
from rescoldo.base import BaseModel
from rescoldo.base.tokenizer import save_tokenizer
from rescoldo.errors import RescoldoError
from rescoldo.export.place import check_place, new_directory
from rescoldo.files import sha256, write_json
from rescoldo.models.loaded import dated_tokenizer, is_run, open_base_of, refuse_unfinished, run_info
from rescoldo.role import keep_role, role_of_run
from rescoldo.run.layout import INFO_FILE, order
from rescoldo.training.checkpoint import read_checkpoint
from rescoldo.version import __version__

# entries of the first part's training_info.json that also apply to the average
_SHARED = ("base_model", "base_fingerprint", "base_shapes", "role", "role_sha256", "quantization", "chat_date")


@dataclass(frozen=True)
class Part:
    """One of the adapters: a run's, or that of one of its epochs. `run` is the run's directory, `info` its
    training_info.json, `digest` the SHA-256 of the file with its weights."""

    path: Path
    run: Path
    info: dict[str, Any]
    adapter: Adapter
    digest: str


def average_runs(
    paths: Sequence[Path], output: Path, *, weights: Sequence[float] | None = None, method: str = "exact"
) -> dict[str, Any]:
    """Write the weighted average of adapters to `output`, which can then be used like a run (eval, serve, export).

    Args:
        paths: at least two: runs' directories, adapters written by PEFT, or checkpoints at the end of an epoch
            (RUN/checkpoint-N).
        weights: one for each, above 0; they are divided by their sum. None: all equal.
        method: a key of `adapter.average.METHODS`.

    Returns:
        The content of training_info.json, and "output".

    Raises:
        RescoldoError: the adapters cannot be averaged, or one cannot be read; nothing was written.
    """
    if method not in METHODS:
        raise RescoldoError(f"there is no method {method!r}", where="--method", fix=f"one of {', '.join(METHODS)}")
    if len(paths) < 2:
        raise RescoldoError("got one adapter: expected at least two", fix="name two or more")
    shares = _shares(weights, len(paths))
    parts = [_open_part(path) for path in paths]
    base = _one_base(parts)
    lora, tensors = average([part.adapter for part in parts], shares, method)
    first = parts[0]
    role = role_of_run(first.run, first.info)
    check_place(output, sum(tensor.nbytes for tensor in tensors.values()), force=False)
    with new_directory(output) as directory:
        write_adapter(directory, tensors, lora, base.spec, wrapped=first.adapter.wrapped)
        save_tokenizer(dated_tokenizer(base, first.info), directory)
        write_calibration(directory, read_calibration(first.run) or {})
        keep_role(role, directory)
        info = {name: first.info[name] for name in _SHARED if name in first.info}
        info |= {"base_model": base.spec, "base_fingerprint": base.fingerprint(), "base_shapes": asdict(base.config)}
        info |= {
            "lora_r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "trainable_params": sum(tensor.numel() for tensor in tensors.values()),
            "version": __version__,
            "averaged": {
                "method": method,
                "parts": [
                    {"path": str(part.path), "weight": share, "sha256": part.digest}
                    for part, share in zip(parts, shares, strict=True)
                ],
            },
        }
        names = [name for name in (CONFIG_FILE, WEIGHTS_FILE, CALIBRATION_FILE) if (directory / name).exists()]
        write_json(directory / INFO_FILE, {**info, "files": {name: sha256(directory / name) for name in names}})
    return {**info, "output": str(output)}


def _shares(weights: Sequence[float] | None, n: int) -> list[float]:
    if weights is None:
        return [1 / n] * n
    if len(weights) != n:
        raise RescoldoError(f"{len(weights)} weights for {n} adapters", where="--weights", fix="one for each adapter")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise RescoldoError("a weight is not above 0", where="--weights", fix="for example 0.7,0.3")
    return [weight / math.fsum(weights) for weight in weights]


def _open_part(path: Path) -> Part:
    """Open a run, or the end of one of its epochs.

    Raises:
        RescoldoError: it is neither, or damaged.
    """
    if path.is_dir() and order(path.resolve()) is not None:
        return _open_epoch(path)
    refuse_unfinished(path)
    if not is_run(str(path)):
        fix = "pass finished runs' directories, or checkpoints at the end of an epoch (RUN/checkpoint-N)"
        raise RescoldoError("holds no adapter", where=str(path), fix=fix)
    return Part(path, path, run_info(path), read_adapter(path), sha256(path / WEIGHTS_FILE))


def _open_epoch(path: Path) -> Part:
    run = path.resolve().parent
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise RescoldoError(f"the checkpoint is damaged: {error}", where=str(path)) from None
    refuse_unfinished(run)
    found = read_adapter(run)
    adapter = Adapter(found.lora, checkpoint.adapter, found.base_model, path, found.wrapped)
    return Part(path, run, run_info(run), adapter, sha256(path / "adapter.safetensors"))


def _one_base(parts: Sequence[Part]) -> BaseModel:
    """The common base model of the adapters.

    Raises:
        RescoldoError: they have different ones, or one does not fit.
    """
    base = open_base_of(parts[0].run, parts[0].info, parts[0].adapter)
    for part in parts[1:]:
        known = part.info.get("base_fingerprint")
        named = str(part.info.get("base_model") or part.adapter.base_model)
        same = known == base.fingerprint() or named == base.spec
        own = base if same else open_base_of(part.run, part.info, part.adapter)
        if own.fingerprint() != (known or base.fingerprint()) or own.fingerprint() != base.fingerprint():
            raise RescoldoError(
                f"{parts[0].path} was trained on {base.spec}, {part.path} on {named}",
                fix="merge adapters of one base model",
            )
    for part in parts:
        part.adapter.fits(base.config, base.spec)
    return base
