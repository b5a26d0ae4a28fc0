"""The assignment of examples to optimizer steps: a function of the config alone, so that any step can be repeated."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from rescoldo.training.config import RunConfig


@dataclass(frozen=True)
class Plan:
    """The order of examples in a run with `examples` training examples."""

    config: RunConfig
    examples: int

    @property
    def step_size(self) -> int:
        """Examples in a full optimizer step."""
        return self.config.batch_size * self.config.grad_accum

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a full epoch; the last one may be smaller."""
        return math.ceil(self.examples / self.step_size)

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches in a full epoch."""
        return math.ceil(self.examples / self.config.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.config.epochs * self.steps_per_epoch
        return min(steps, self.config.max_steps) if self.config.max_steps else steps

    @property
    def epochs(self) -> int:
        """The number of epochs that are at least started (fewer than configured if max_steps ends the run)."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def groups(self, epoch: int) -> list[list[int]]:
        """The examples of each optimizer step of an epoch (from 0), in order; max_steps may truncate the epoch."""
        order = list(range(self.examples))
        if self.config.shuffle:
            order = shuffled(self.examples, self.config.seed, epoch)
        groups = [order[i : i + self.step_size] for i in range(0, self.examples, self.step_size)]
        return groups[: self.total_steps - epoch * self.steps_per_epoch]

    def batches(self, group: list[int]) -> list[list[int]]:
        """The micro-batches of an optimizer step, as indices into `group`."""
        size = self.config.batch_size
        return [list(range(i, min(i + size, len(group)))) for i in range(0, len(group), size)]


def shuffled(n: int, seed: int, epoch: int) -> list[int]:
    """0..n-1 in an order that depends only on seed and epoch, the same on every machine and library version."""
    return sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}:{epoch}:{i}".encode()).digest())
