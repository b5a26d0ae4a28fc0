"""Checkpoints: everything that a run needs to resume without any difference in the result.

A checkpoint is a directory of safetensors files and a manifest.json with the SHA-256 of each. It gets its name only
when it is completely on disk. Names sort by position:

    checkpoint-0-eval-4       nothing trained, 4 validation examples evaluated
    checkpoint-57-rolling     after 57 micro-batches, in the middle of an epoch
    checkpoint-98-eval-4      epoch trained, 4 validation examples evaluated
    checkpoint-98             epoch trained and evaluated; these are kept

It does not contain the base model (which is identified by its hash), random number generators (there are none: order,
dropout and initial weights are functions of seed and position), or times (these are in timings.jsonl).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from rescoldo.engine.weights import Tensors
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256, sync_directory
from rescoldo.run.layout import METRICS, list_checkpoints, order

FORMAT = 2  # 1: int8 with other outliers
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"  # the manifest's own hash
TENSOR_FILES = ("adapter", "optimizer", "best", "gradients", "frozen")
MAX_MANIFEST_BYTES = 64 << 20


@dataclass
class EpochLosses:
    """Mean loss per target token (nats) of one epoch: while training on it, and on the validation set after it."""

    epoch: int  # from 1
    train_loss: float
    val_loss: float


@dataclass
class Position:
    """The position of a run, with its running sums. Everything here is a function of config, data and base model.

    Attributes:
        epoch: the epoch being trained or evaluated, from 0.
        step: finished optimizer steps.
        batches: finished micro-batches (the N of checkpoint-N).
        micro: finished micro-batches of the current optimizer step.
        step_nats: their summed loss.
        epoch_nats, epoch_targets: summed loss and summed target weight of this epoch so far.
        baseline: summed loss, summed target weight and the objective's figures for each validation example evaluated
            before training so far; stays empty in runs started with an older version.
        evaluated: the same for each validation example evaluated in this epoch so far.
        tokens, targets: trained on so far, prompts included / only tokens with a loss.
        losses: of each finished epoch.
        best_epoch: from 1; 0 before the first evaluation.
        stopped_early: early stopping has ended the training.
        reference: log-probability (nats) of each sequence under the model before training, which the objective uses as
            reference: first of the training examples, then of the validation examples, as far as measured.
    """

    epoch: int = 0
    step: int = 0
    batches: int = 0
    micro: int = 0
    step_nats: float = 0.0
    epoch_nats: float = 0.0
    epoch_targets: float = 0
    baseline: list[tuple[float, ...]] = field(default_factory=list)
    evaluated: list[tuple[float, ...]] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0
    losses: list[EpochLosses] = field(default_factory=list)
    best_epoch: int = 0
    stopped_early: bool = False
    reference: list[float] = field(default_factory=list)

    @property
    def loss_before(self) -> float | None:
        """Mean validation loss per target token before training; None if it was not measured."""
        return mean_loss(self.baseline) if self.baseline else None


@dataclass
class Checkpoint:
    """The content of a checkpoint; reading returns exactly what was written."""

    position: Position
    identity: dict[str, Any]
    metrics: str  # the whole of metrics.jsonl so far
    adapter: Tensors
    optimizer: Tensors
    best: Tensors  # the best epoch's adapter; {} before the first evaluation
    gradients: Tensors  # GradientStep.state() of the unfinished optimizer step, {} between steps
    frozen: Tensors  # LoraModel.frozen_state()

    def name(self, epoch_end: bool) -> str:
        """The directory's name."""
        if epoch_end:
            return f"checkpoint-{self.position.batches}"
        evaluated = self.position.evaluated if self.position.batches else self.position.baseline
        if evaluated:
            return f"checkpoint-{self.position.batches}-eval-{len(evaluated)}"
        return f"checkpoint-{self.position.batches}-rolling"


def write_checkpoint(output: Path, checkpoint: Checkpoint, *, epoch_end: bool, keep: int) -> Path:
    """Write atomically, then remove all but the newest `keep` checkpoints that are not at an epoch's end.

    Raises:
        OSError: the disk is full or similar; existing checkpoints are unchanged, and nothing incomplete is left.
    """
    target = output / checkpoint.name(epoch_end)
    temporary = output / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        files = {
            f"{name}.safetensors": _write(temporary / f"{name}.safetensors", _serialise(getattr(checkpoint, name)))
            for name in TENSOR_FILES
        }
        files[METRICS] = _write(temporary / METRICS, checkpoint.metrics.encode())
        manifest = {
            "format": FORMAT,
            "position": asdict(checkpoint.position),
            "identity": checkpoint.identity,
            "files": files,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _write(temporary / SEAL, (_write(temporary / MANIFEST, text.encode()) + "\n").encode())
        sync_directory(temporary)
        if target.exists():
            shutil.rmtree(target)  # the same position, and so the same content
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(output)
    prune(output, keep)
    return target


def prune(output: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints that are not at an epoch's end."""
    between = [path for path in list_checkpoints(output) if (order(path) or (0, 0.0))[1] != float("inf")]
    for path in between[keep:]:
        _remove(path)


def clean(output: Path) -> None:
    """Remove incomplete files of a killed process."""
    for path in output.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in output.glob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint in such a way that a kill leaves no incomplete checkpoint with a valid name."""
    doomed = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(OSError):
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def mean_loss(evaluated: Sequence[tuple[float, ...]]) -> float:
    """The mean loss of evaluated examples; the first two values of each are its summed loss and its weight."""
    return sum(row[0] for row in evaluated) / sum(row[1] for row in evaluated)


def _rows(raw: list[list[float]]) -> list[tuple[float, ...]]:
    return [(float(nats), n if isinstance(n, int) else float(n), *map(float, more)) for nats, n, *more in raw]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        ValueError: it is damaged; the message says where.
    """
    try:
        if (path / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("its manifest is too large")
        data = (path / MANIFEST).read_bytes()
        if hashlib.sha256(data).hexdigest().encode() != (path / SEAL).read_bytes().strip():
            raise ValueError("its manifest does not match its hash")
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise ValueError(f"it has format {manifest['format']}: expected {FORMAT}")
        for name, hexdigest in manifest["files"].items():
            if sha256(path / Path(name).name) != hexdigest:
                raise ValueError(f"{name} does not match its hash")
        raw = manifest["position"]
        position = Position(
            **{
                **raw,
                **{k: _rows(raw.get(k, [])) for k in ("baseline", "evaluated")},
                "losses": [EpochLosses(**losses) for losses in raw["losses"]],
            }
        )
        tensors = {name: _deserialise((path / f"{name}.safetensors").read_bytes()) for name in TENSOR_FILES}
        metrics = (path / METRICS).read_text(encoding="utf-8")
        return Checkpoint(position, manifest["identity"], metrics, **tensors)
    except ValueError:
        raise  # JSON and UTF-8 errors are ValueErrors as well
    except OSError as error:
        raise ValueError(f"{Path(error.filename or path).name} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise ValueError(f"it is incomplete ({type(error).__name__}: {error})") from None


class UnresumableError(RescoldoError):
    """The content of the output directory cannot be resumed: another run, another version's, or damaged."""


def read_latest(output: Path, warn: Callable[[str], None]) -> tuple[Checkpoint, Path] | None:
    """The newest valid checkpoint. Damaged ones are reported through `warn` and renamed.

    Raises:
        UnresumableError: there are checkpoints, but none is valid.
    """
    paths = list_checkpoints(output)
    damaged: list[Path] = []
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            warn(f"{path.name} is damaged: {error}")
            damaged.append(path)
            continue
        for bad in damaged:
            aside = bad.with_name(f"damaged-{bad.name}")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rename(bad, aside)
        if damaged:
            warn(f"resuming from {path.name}, the last good one; damaged ones are kept as damaged-checkpoint-…")
        return checkpoint, path
    if not paths:
        return None
    raise UnresumableError(
        f"all {len(paths)} checkpoints are damaged, so the run cannot be resumed",
        where=str(output),
        fix="start over with --restart (the old run is kept aside)",
    )


def _serialise(tensors: Tensors) -> bytes:
    data: bytes = safetensors.torch.save({key: tensor.detach().contiguous() for key, tensor in tensors.items()})
    return data


def _deserialise(data: bytes) -> Tensors:
    # clone: the tensors in `data` are unaligned, for which BLAS sums in another order than for aligned memory
    return {key: tensor.clone() for key, tensor in safetensors.torch.load(data).items()}


def _write(path: Path, data: bytes) -> str:
    """Write a file durably; return the content's SHA-256."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()
