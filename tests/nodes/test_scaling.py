"""The paper model of a step on several machines, against hand computation."""

from __future__ import annotations

from typing import Any

import pytest

from rescoldo.nodes.reducer import BUCKET_BYTES
from rescoldo.nodes.scaling import largest_share, speedup, step_time, worth
from rescoldo.nodes.share import Load


def equal(examples: int, own: float = 100.0, shared: float = 0.0) -> Load:
    return Load((own,) * examples, (0,) * examples, (shared,))


SEVEN_B: dict[str, Any] = {"step_seconds": 240.0, "loads": [equal(8)], "gradient_bytes": 27e6}


def test_by_hand() -> None:
    two = step_time(2, **SEVEN_B, bandwidth=27e6, latency=0.0)
    bucket = BUCKET_BYTES / 27e6
    assert two.compute == 120.0
    assert two.exchange == pytest.approx(bucket)  # the last bucket; the others are hidden
    assert speedup(2, **SEVEN_B, bandwidth=27e6) == pytest.approx(240 / (120 + bucket), rel=1e-4)
    slow = step_time(2, **SEVEN_B, bandwidth=1e6, latency=0.0)  # longer than the last backward pass of 15 s
    assert slow.exchange == pytest.approx(27 - 15)  # half there and half back
    shared = {**SEVEN_B, "loads": [equal(8, 90, 80)]}  # a tenth of a step
    assert step_time(2, **shared, bandwidth=1e6, latency=0.0).exchange == pytest.approx(27 - 12)
    assert step_time(3, **SEVEN_B).compute == 90.0  # three of eight examples
    assert step_time(4, **SEVEN_B, bandwidth=1e6, latency=1.0).exchange == pytest.approx(1.5 * 27 + 8 - 15)
    assert step_time(1, **SEVEN_B).seconds == 240.0


def test_the_busiest_machine() -> None:
    assert largest_share(equal(8), 2) == 0.5
    assert largest_share(equal(8, 50, 400), 2) == 0.75  # the beginning on both
    assert largest_share(Load((300, 100), (0, 1), (0, 0)), 2) == 0.75  # an example is not divided
    assert largest_share(equal(1), 4) == 1.0
    mean = {**SEVEN_B, "loads": [equal(8), equal(8, 50, 400)]}
    assert step_time(2, **mean).compute == pytest.approx(240 * 0.625)


def test_limits() -> None:
    assert speedup(1, **SEVEN_B) == 1.0
    assert speedup(1000, **SEVEN_B) == pytest.approx(8, rel=0.01)  # an example is not divided
    assert speedup(2, **{**SEVEN_B, "step_seconds": 0.01}) < 1


def test_where_it_stops_paying() -> None:
    assert worth(**SEVEN_B) == 8
    assert worth(**{**SEVEN_B, "step_seconds": 0.01}) == 1
    assert worth(**{**SEVEN_B, "loads": [equal(64)]}) == 64
