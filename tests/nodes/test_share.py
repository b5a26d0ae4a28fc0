"""Who computes what."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rescoldo.nodes.share import assign, measured


def loads(costs: list[float], ranks: list[int], size: int) -> list[float]:
    return [sum(cost for cost, rank in zip(costs, ranks, strict=True) if rank == one) for one in range(size)]


def test_by_hand() -> None:
    assert assign([100, 90, 50, 40], [0, 0]) == [0, 1, 1, 0]
    assert loads([10] * 9, assign([10] * 9, [2, 1]), 2) == [60, 30]
    assert assign([5], [0, 7, 9]) == [2]
    assert measured([0, 0, 4], [100, 300, 0], [10, 10, 0]) == [10, 30, 4]
    assert measured([10, 30], [100, 100], [5, 10]) == [15, 20]


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=40),
    st.lists(st.integers(1, 100), min_size=1, max_size=6),
)
def test_nobody_waits_longer_than_for_one_example(costs: list[int], speeds: list[int]) -> None:
    ranks = assign(costs, speeds)
    assert ranks == assign(costs, speeds)
    times = [load / speed for load, speed in zip(loads(list(costs), ranks, len(speeds)), speeds, strict=True)]
    ideal = sum(costs) / sum(speeds)
    assert max(times) <= ideal + max(costs) / min(speed for i, speed in enumerate(speeds) if times[i])
