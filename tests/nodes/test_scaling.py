"""The paper model of a step on several machines, against hand computation."""

from __future__ import annotations

from typing import Any

import pytest

from rescoldo.nodes.reducer import BUCKET_BYTES
from rescoldo.nodes.scaling import speedup, step_time, worth

SEVEN_B: dict[str, Any] = {"step_seconds": 240.0, "examples_per_step": 8, "gradient_bytes": 27e6}


def test_by_hand() -> None:
    two = step_time(2, **SEVEN_B, bandwidth=27e6, latency=0.0)
    bucket = BUCKET_BYTES / 27e6
    assert two.compute == 120.0
    assert two.exchange == pytest.approx(1 + bucket)  # the weights back, and the last bucket
    assert speedup(2, **SEVEN_B, bandwidth=27e6, latency=0.0) == pytest.approx(240 / (121 + bucket))
    slow = step_time(2, **SEVEN_B, bandwidth=1e6, latency=0.0)  # longer than the last backward pass of 15 s
    assert slow.exchange == pytest.approx(27 - 15 + 27)  # half round the ring, half to the leader, and once back
    assert step_time(2, **SEVEN_B, bandwidth=1e6, latency=0.0, shared=0.1).exchange == pytest.approx(27 - 12 + 27)
    assert step_time(3, **SEVEN_B).compute == 90.0  # three of eight examples
    assert step_time(2, **SEVEN_B, shared=0.5).compute == 180.0
    assert step_time(2, **SEVEN_B, imbalance=0.1).compute == pytest.approx(132.0)


def test_limits() -> None:
    assert speedup(1, **SEVEN_B) == 1.0
    assert speedup(1000, **SEVEN_B) == speedup(8, **SEVEN_B)  # an example is not divided
    assert speedup(2, step_seconds=0.01, examples_per_step=8, gradient_bytes=27e6) < 1


def test_where_it_stops_paying() -> None:
    assert worth(**SEVEN_B) == 8
    assert worth(**{**SEVEN_B, "step_seconds": 0.01}) == 1
    assert worth(**{**SEVEN_B, "examples_per_step": 64}) == 64
