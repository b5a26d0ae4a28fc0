"""Who computes what."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from rescoldo.assemble import real_parts
from rescoldo.engine.types import Example
from rescoldo.nodes.group import Group
from rescoldo.nodes.leader import Leader
from rescoldo.nodes.share import Load, assign, load_of, measured, slow_ones


def apart(costs: list[int]) -> Load:
    return Load(tuple(map(float, costs)), tuple(range(len(costs))), (0.0,) * len(costs))


def test_by_hand() -> None:
    assert assign(apart([100, 90, 50, 40]), [0, 0]) == [0, 1, 1, 0]
    assert apart([10] * 9).of(assign(apart([10] * 9), [2, 1]), 2) == [60, 30]
    assert assign(apart([5]), [0, 7, 9]) == [2]
    assert measured([0, 0, 4], [100, 300, 0], [10, 10, 0]) == [10, 30, 4]
    assert measured([10, 30], [100, 100], [5, 10]) == [15, 20]


def test_a_shared_beginning_is_paid_once_by_each_machine() -> None:
    load = Load((10.0,) * 4, (0,) * 4, (100.0,))
    assert assign(load, [1, 1]) == [0, 1, 0, 1]
    assert load.of([0, 1, 0, 1], 2) == [120, 120]
    assert assign(load, [10, 1]) == [0, 0, 0, 0]  # the slow one would not even be done with the beginning
    beginning = tuple(range(40))
    examples = [Example((*beginning, 100 + i, 7), 41) for i in range(3)]
    assert load_of(examples, share=True) == Load((2.0,) * 3, (0,) * 3, (40.0,))
    assert load_of(examples, share=False) == Load((42.0,) * 3, (0,) * 3, (0.0,))


def test_the_slow_are_named() -> None:
    assert slow_ones([100, 90, 40]) == [2]
    assert slow_ones([100, 40]) == [1]
    assert slow_ones([100, 0, 60]) == []
    assert slow_ones([100]) == []


def test_the_leader_learns_and_says_who_is_slow_once() -> None:
    said: list[str] = []
    leader = Leader(real_parts(), Group(0, 2, 0, ("office-1", "office-2")))
    leader._reporter = SimpleNamespace(warn=said.append)
    for _ in range(6):
        leader.step_done([100.0, 100.0], [1.0, 4.0], [0.0, 0.0])
    assert leader.speeds == [100, 25]
    assert len(said) == 1
    assert said[0].startswith("office-2 is slow: 25 tokens/s, the fastest does 100")
    by_hand = Leader(real_parts(), Group(0, 2, 0, ("office-1", "office-2"), (1.0, 3.0)))
    by_hand.step_done([100.0, 100.0], [1.0, 4.0], [0.0, 0.0])
    assert by_hand.speeds == [1, 3]


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=40),
    st.lists(st.integers(1, 100), min_size=1, max_size=6),
)
def test_nobody_waits_longer_than_for_one_example(costs: list[int], speeds: list[int]) -> None:
    load = apart(costs)
    ranks = assign(load, speeds)
    assert ranks == assign(load, speeds)
    times = [work / speed for work, speed in zip(load.of(ranks, len(speeds)), speeds, strict=True)]
    ideal = sum(costs) / sum(speeds)
    assert max(times) <= ideal + max(costs) / min(speed for i, speed in enumerate(speeds) if times[i])
