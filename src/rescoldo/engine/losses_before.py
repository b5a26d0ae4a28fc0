"""The losses of the untrained model kept on the disk: another run on the same base model and validation examples does
not measure them again.

An adapter whose B is zero adds nothing, so the loss before the training is that of the frozen weights, whatever the
run's settings are. An entry is known by the hash of everything that the losses are a function of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from rescoldo.engine.converted import cache_used, digest
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.model import LoraModel
from rescoldo.engine.types import Example
from rescoldo.engine.weights import OpenedModel
from rescoldo.files import cache_root, write_json

_VERSION = "1"  # of what the losses are computed by: another one makes other entries
_KEPT = 256  # entries, those used last; one has some 20 bytes an example
Losses = list[tuple[float, ...]]


class LossesBefore:
    """What evaluate_loss returns for `examples` and a model as it is before the training, as long as it is that."""

    def __init__(self, base: OpenedModel, model: LoraModel, examples: Sequence[Example]) -> None:
        self.n_examples = len(examples)
        self.path: Path | None = None
        if cache_used() and model.untrained:
            made_with = (
                _VERSION,
                base.fingerprint(),
                base.config,
                model.precision,
                kernels().version,
                torch.__version__,
            )
            described = [(one.tokens, one.n_prompt, one.weights, one.documents) for one in examples]
            text = repr((*made_with, digest(model.frozen_state()), model.share_prefix, described))
            self.path = cache_root() / "losses" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def read(self) -> Losses | None:
        """The losses, None if they are not there or damaged."""
        if self.path is None:
            return None
        try:
            rows = json.loads(self.path.read_bytes())["losses"]
            losses = [tuple(map(float, row)) for row in rows]
            os.utime(self.path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        whole = len(losses) == self.n_examples and all(len(row) == 2 for row in losses)
        return losses if whole and all(math.isfinite(number) for row in losses for number in row) else None

    def write(self, losses: Sequence[tuple[float, ...]]) -> None:
        """Keep them, and delete the entries used longest ago. It only saves time: without room it is left out."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"losses": [list(row) for row in losses]})
            entries = sorted(self.path.parent.glob("*.json"), key=lambda entry: -entry.stat().st_mtime)
            for entry in entries[_KEPT:]:
                entry.unlink()
