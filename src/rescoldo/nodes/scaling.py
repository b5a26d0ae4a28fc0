"""How much faster a step is on several machines: on paper, from measured terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rescoldo.nodes.reducer import BUCKET_BYTES

GIGABIT = 117e6  # bytes a second that plain 1 Gbit/s Ethernet carries
LATENCY = 0.0005  # seconds for a message on it


@dataclass(frozen=True)
class StepTime:
    """An optimizer step on several machines. Seconds.

    Attributes:
        compute: of the machine that has most to do.
        exchange: what is waited for: the gradients' sum on the leader behind the last backward pass, the weights back.
    """

    compute: float
    exchange: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exchange


def step_time(
    machines: int,
    *,
    step_seconds: float,
    examples_per_step: int,
    gradient_bytes: float,
    bandwidth: float = GIGABIT,
    latency: float = LATENCY,
    shared: float = 0.0,
    imbalance: float = 0.0,
) -> StepTime:
    """A step on `machines` equal machines.

    Args:
        machines: how many; those above `examples_per_step` have nothing to do.
        step_seconds: of one step on one machine.
        examples_per_step: batch_size · grad_accum: an example is not divided.
        gradient_bytes: of the adapter in float32.
        bandwidth: of a machine's network link, bytes a second.
        latency: of one message, in seconds.
        shared: share of a step that goes into the examples' common beginning, which each machine computes for itself.
        imbalance: by how much the slowest machine's share is above the mean (0.1: a tenth), beyond whole examples.
    """
    working = max(1, min(machines, examples_per_step))
    if working == 1:
        return StepTime(step_seconds, 0.0)
    largest = math.ceil(examples_per_step / working) / examples_per_step
    compute = step_seconds * (shared + (1 - shared) * largest * (1 + imbalance))
    # gloo: the gradients go round a ring in pieces and the sums to the leader, the weights down a tree
    rounds = math.ceil(math.log2(working))
    reduction = 2 * (working - 1) / working * gradient_bytes / bandwidth + 2 * working * latency
    broadcast = rounds * (gradient_bytes / bandwidth + latency)
    # the last backward pass, about half of what the common beginning, or an example, takes, hides all buckets but one
    last_backward = step_seconds * (shared or 1 / examples_per_step) / 2
    hidden = min(last_backward, reduction * max(0.0, 1 - BUCKET_BYTES / gradient_bytes))
    return StepTime(compute, reduction - hidden + broadcast)


def speedup(
    machines: int, *, step_seconds: float, examples_per_step: int, gradient_bytes: float, **terms: float
) -> float:
    """How many times as fast `machines` machines do a step as one does. Arguments as for `step_time`."""
    if machines <= 1:
        return 1.0
    several = step_time(
        machines,
        step_seconds=step_seconds,
        examples_per_step=examples_per_step,
        gradient_bytes=gradient_bytes,
        **terms,
    )
    return step_seconds / several.seconds


def worth(
    *, step_seconds: float, examples_per_step: int, gradient_bytes: float, gain: float = 1.1, **terms: float
) -> int:
    """The largest number of machines up to which each doubling still makes a step at least `gain` times as fast."""

    def faster(machines: int) -> float:
        return speedup(
            machines,
            step_seconds=step_seconds,
            examples_per_step=examples_per_step,
            gradient_bytes=gradient_bytes,
            **terms,
        )

    machines = 1
    while faster(2 * machines) >= gain * faster(machines):
        machines *= 2
    return machines
