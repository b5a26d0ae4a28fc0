"""How much faster a step is on several machines: on paper, from measured terms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rescoldo.nodes.reducer import BUCKET_BYTES
from rescoldo.nodes.share import Load, assign

GIGABIT = 117e6  # bytes a second that plain 1 Gbit/s Ethernet carries
LATENCY = 0.0005  # seconds for a message on it


@dataclass(frozen=True)
class StepTime:
    """An optimizer step on several machines. Seconds.

    Attributes:
        compute: of the machine that has most to do.
        exchange: what is waited for: the gradients' sum, as far as the last backward pass does not hide it.
    """

    compute: float
    exchange: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exchange


def largest_share(load: Load, machines: int) -> float:
    """The part of one machine's work on a step that falls to the busiest of `machines` equal ones: above 1 / machines
    because an example is not divided, and the common beginning is computed by each machine."""
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
    """A step on `machines` equal machines, in the mean over some.

    Args:
        machines: how many.
        loads: what the examples of typical steps cost: they are dealt out as a run does it.
        step_seconds: of one step on one machine.
        gradient_bytes: of the adapter in float32.
        bandwidth: of a machine's network link, bytes a second.
        latency: of one message, in seconds.
    """
    if machines <= 1:
        return StepTime(step_seconds, 0.0)
    compute = step_seconds * statistics.mean(largest_share(load, machines) for load in loads)
    # gloo: the pieces go round a ring twice, once to be summed and once to be told
    exchange = 2 * (machines - 1) / machines * gradient_bytes / bandwidth + 2 * machines * latency
    # the last backward pass, about half of what the common beginning, or an example, takes, hides all buckets but one
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
    """How many times as fast `machines` machines do a step as one does. Arguments as for `step_time`."""
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
    """The largest number of machines up to which each doubling still makes a step at least `gain` times as fast.
    Arguments as for `step_time`."""
    machines, fast = 1, 1.0
    while True:
        faster = speedup(
            2 * machines, loads=loads, step_seconds=step_seconds, gradient_bytes=gradient_bytes, bandwidth=bandwidth
        )
        if faster < gain * fast:
            return machines
        machines, fast = 2 * machines, faster
