"""What a sweep goes through, and what comes next."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.errors import RescoldoError
from rescoldo.sweep.report import best_trials
from rescoldo.sweep.search import Tried, next_params
from rescoldo.sweep.space import Choice, Range, grid, read_space, run_fields


def test_reading() -> None:
    space = read_space(["lora_r=4, 8,8", "lr=1e-4..3e-3", "lora-targets=all,q_proj+v_proj", "lora_dropout=0..0.2"])
    assert space == {
        "lora_r": Choice((4, 8)),
        "lr": Range(1e-4, 3e-3, whole=False, log=True),
        "lora_targets": Choice(("all", "q_proj+v_proj")),
        "lora_dropout": Range(0.0, 0.2, whole=False, log=False),
    }
    assert run_fields({"lora_r": 4, "lora_targets": "q_proj+v_proj"}) == {
        "lora_r": 4,
        "lora_targets": ["q_proj", "v_proj"],
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "nothing to vary"),
        (["rank=4"], "no field 'rank'"),
        (["lora=4"], "did you mean lora_r"),
        (["lora_r"], "no values"),
        (["lora_r="], "no values"),
        (["lora_r=4.5"], "'4.5' is not a whole number"),
        (["lr=fast"], "not a number"),
        (["lr=1e-2..1e-3"], "from low to high"),
        (["lr=nan,1e-3"], "nan is not allowed: use a number above 0 and at most 1"),
        (["lr=inf"], "inf is not allowed"),
        (["lr=nan..1"], "nan is not allowed"),
        (["lr=1e-3,-1e-3"], "-0.001 is not allowed"),
        (["lora_r=8..2000"], "2000 is not allowed: use a whole number from 1 to 1024"),
        (["epochs=1,0"], "0 is not allowed"),
        (["lora_targets=q_proj,q_proj+bogus"], "no linear 'bogus'"),
        (["lora_targets=all..mlp"], "no range"),
        (["lr=1e-3", "lr=1e-4"], "is repeated"),
    ],
)
def test_bad_spaces(texts: list[str], message: str) -> None:
    with pytest.raises(RescoldoError, match=message) as caught:
        read_space(texts)
    assert caught.value.where.startswith("--over")


def test_grid() -> None:
    space = read_space(["lora_r=4,8", "epochs=1,2,3"])
    found = list(grid(space))
    assert found[:4] == [
        {"lora_r": 4, "epochs": 1},
        {"lora_r": 4, "epochs": 2},
        {"lora_r": 4, "epochs": 3},
        {"lora_r": 8, "epochs": 1},
    ]
    assert len(found) == 6
    history: list[Tried] = []
    while params := next_params(space, history, None, 1):
        history.append(Tried(params, 0.5))
    assert [tried.params for tried in history] == found
    more = read_space(["lora_r=4,8,16", "epochs=1,2,3"])
    assert next_params(more, history, None, 1) == {"lora_r": 16, "epochs": 1}
    with pytest.raises(RescoldoError, match="a grid needs values"):
        grid(read_space(["lr=1e-4..1e-3"]))
    with pytest.raises(RescoldoError, match="combinations: expected at most"):
        grid({"seed": Choice(tuple(range(1001)))})


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.none() | st.floats(0, 1), max_size=6))
def test_optuna_depends_on_seed_and_history_alone(seed: int, scores: list[float | None]) -> None:
    space = read_space(["lr=1e-4..1e-2", "lora_r=4..32", "lora_targets=all,attention"])
    history: list[Tried] = []
    for score in scores:
        params = next_params(space, history, 20, seed)
        assert params == next_params(space, list(history), 20, seed)
        assert params is not None
        assert 1e-4 <= float(params["lr"]) <= 1e-2
        assert isinstance(params["lora_r"], int)
        assert 4 <= params["lora_r"] <= 32
        assert params["lora_targets"] in ("all", "attention")
        assert params not in [tried.params for tried in history]
        history.append(Tried(params, score))


def test_optuna_ends_and_learns() -> None:
    small = read_space(["lora_r=4,8", "epochs=1,2"])
    history: list[Tried] = []
    while params := next_params(small, history, 10, 3):
        history.append(Tried(params, 0.1))
    assert len(history) == 4  # there is nothing else
    space = read_space(["lr=1e-5..1e-1"])
    history = []
    while params := next_params(space, history, 30, 3):
        distance = abs(float(params["lr"]) - 1e-3) / 1e-3
        history.append(Tried(params, 1 / (1 + distance)))
    early, late = ([tried.score or 0 for tried in part] for part in (history[:10], history[-10:]))
    assert sum(late) > sum(early)


def trial(name: str, score: float, loss: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "status": "finished", "score": score, "val_loss": loss, "seconds": seconds, **more}


def test_best_is_by_the_metric() -> None:
    trials = [
        trial("a", 0.5, 1.0, 10),
        trial("b", 0.9, 2.0, 20),
        trial("c", 0.9, 1.5, 30),
        trial("d", 0.4, 3.0, 15),
        {"name": "e", "status": "failed"},
    ]
    assert best_trials(trials) == {"by_score": "c", "by_loss": "a", "front": ["a", "b"]}
    assert best_trials(trials[4:]) == {"by_score": None, "by_loss": None, "front": []}
