"""The speedup of a step on several machines, computed from measured terms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rescoldo.nodes.reducer import BUCKET_BYTES
from rescoldo.nodes.share import Load, assign

GIGABIT = 117e6  # bytes per second on plain 1 Gbit/s Ethernet
LATENCY = 0.0005  # seconds per message on it


@dataclass(frozen=True)
class StepTime:
    """The time of an optimizer step on several machines, in seconds.

    Attributes:
        compute: on the machine with the most work.
        exchange: waiting for the gradients' all-reduce, as far as the last backward pass does not hide it.
    """

    compute: float
    exchange: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exchange


def largest_share(load: Load, machines: int) -> float:
    """The fraction of one machine's work for a step that the busiest of `machines` equal ones has: above 1 / machines,
    because examples are not divided and each machine computes the shared prefix."""
    return max(load.of(assign(load, [1.0] * machines), machines)) / load.whole


def step_time(
    machines: int,
    *,
    loads: Sequence[Load],
    step_seconds: float,
    gradient_bytes: float,
    bandwidth: float = GIGABIT,
    latency: float = LATENCY,
) -> StepTime:
    """The time of a step on `machines` equal machines, averaged over several steps.

    Args:
        machines: number of machines.
        loads: the cost of the examples of typical steps; they are assigned as in a run.
        step_seconds: time of a step on one machine.
        gradient_bytes: size of the adapter in float32.
        bandwidth: of a machine's network link, bytes per second.
        latency: of one message, in seconds.
    """
    if machines <= 1:
        return StepTime(step_seconds, 0.0)
    compute = step_seconds * statistics.mean(largest_share(load, machines) for load in loads)
    # gloo's ring all-reduce: the pieces go around twice, once for the sum and once to distribute it
    exchange = 2 * (machines - 1) / machines * gradient_bytes / bandwidth + 2 * machines * latency
    # the last backward pass, about half the cost of the shared prefix or of an example, hides all buckets but one
    last_backward = step_seconds * statistics.mean(_last_pass(load) for load in loads) / 2
    hidden = min(last_backward, exchange * max(0.0, 1 - BUCKET_BYTES / gradient_bytes))
    return StepTime(compute, exchange - hidden)


def _last_pass(load: Load) -> float:
    return (sum(load.shared) or statistics.mean(load.own)) / load.whole


def speedup(
    machines: int,
    *,
    loads: Sequence[Load],
    step_seconds: float,
    gradient_bytes: float,
    bandwidth: float = GIGABIT,
) -> float:
    """How many times faster `machines` machines make a step than one. Arguments as for `step_time`."""
    several = step_time(
        machines, loads=loads, step_seconds=step_seconds, gradient_bytes=gradient_bytes, bandwidth=bandwidth
    )
    return step_seconds / several.seconds


def worth(
    *,
    loads: Sequence[Load],
    step_seconds: float,
    gradient_bytes: float,
    bandwidth: float = GIGABIT,
    gain: float = 1.1,
) -> int:
    """The largest number of machines up to which each doubling still makes a step at least `gain` times faster.
    Arguments as for `step_time`."""
    machines, fast = 1, 1.0
    while True:
        faster = speedup(
            2 * machines, loads=loads, step_seconds=step_seconds, gradient_bytes=gradient_bytes, bandwidth=bandwidth
        )
        if faster < gain * fast:
            return machines
        machines, fast = 2 * machines, faster
