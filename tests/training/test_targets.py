"""`--lora-targets` under the names that a family has: linears that a model stores as one are one target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rescoldo.errors import RescoldoError
from rescoldo.training.config import RunConfig
from rescoldo.training.preset import check_against_base
from tests.engine.common import tiny_base


def _targets(architecture: str, **fields: Any) -> tuple[str, ...]:
    config = RunConfig(train=Path("a"), val=Path("b"), output=Path("c"), **fields)
    base = tiny_base(architecture)
    return check_against_base(config.model_copy(update={"max_length": 64}), base).lora_targets


@pytest.mark.parametrize(
    ("asked", "fused", "apart"),
    [
        (None, "qkv_proj o_proj", "q_proj k_proj v_proj o_proj"),
        ("attention", "qkv_proj o_proj", "q_proj k_proj v_proj o_proj"),
        ("mlp", "gate_up_proj down_proj", "gate_proj up_proj down_proj"),
        ("all", "qkv_proj o_proj gate_up_proj down_proj", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("down_proj,v_proj,q_proj,k_proj", "qkv_proj down_proj", "q_proj k_proj v_proj down_proj"),
        ("gate_up_proj,o_proj", "o_proj gate_up_proj", None),
        ("q_proj,v_proj", None, "q_proj v_proj"),
        ("up_proj", None, "up_proj"),
    ],
)
def test_targets_of_a_family(asked: str | None, fused: str | None, apart: str | None) -> None:
    fields = {} if asked is None else {"lora_targets": asked}
    for architecture, expected in (("phi3", fused), ("llama", apart)):
        if expected is not None:
            assert _targets(architecture, **fields) == tuple(expected.split())
            continue
        with pytest.raises(RescoldoError) as raised:
            _targets(architecture, **fields)
        assert "has no linear" in str(raised.value)
        assert all(name in str(raised.value) for name in tiny_base(architecture).config.linears)
