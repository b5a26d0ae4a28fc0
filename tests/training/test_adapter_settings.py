"""The settings of an adapter: what they may be, and what they become on a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rescoldo.engine.types import LoraConfig
from rescoldo.errors import RescoldoError
from rescoldo.training.config import RunConfig, make_config
from rescoldo.training.parts import lora_config
from rescoldo.training.preset import check_against_base
from tests.engine.common import tiny_base

PATHS = {"train": "a", "val": "b", "output": "c"}


def _lora(architecture: str = "llama", n_layers: int = 4, **fields: Any) -> LoraConfig:
    base = tiny_base(architecture, num_hidden_layers=n_layers)
    config = check_against_base(make_config({**PATHS, "max_length": 64, **fields}), base)
    return lora_config(config, n_layers)


def test_ranks_and_alphas_by_linear() -> None:
    lora = _lora(lora_ranks="q_proj=3, mlp=12", lora_alphas="down_proj=5", lora_targets="all", adapter="rslora")
    assert [lora.rank_of(name) for name in ("q_proj", "k_proj", "up_proj", "down_proj")] == [3, 8, 12, 12]
    assert lora.rank_of("model.layers.1.self_attn.q_proj") == 3
    assert lora.scale_of("down_proj") == 5 / 12**0.5
    assert lora.scale_of("k_proj") == 32 / 8**0.5
    fused = _lora("phi3", lora_ranks="attention=4")
    assert (dict(fused.ranks), fused.targets) == ({"qkv_proj": 4, "o_proj": 4}, ("qkv_proj", "o_proj"))


@pytest.mark.parametrize(
    ("asked", "layers"),
    [("1", (3,)), (3, (1, 2, 3)), ("4", None), ("0,2", (0, 2)), ([2], (2,)), ("3,0,1,2", None), (None, None)],
)
def test_layers(asked: Any, layers: tuple[int, ...] | None) -> None:
    assert _lora(lora_layers=asked).layers == layers
    assert _lora(lora_layers=asked).first_layer == (layers[0] if layers else 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter": "doar"}, "--adapter doar is not allowed"),
        ({"lora_ranks": "q_proj"}, "--lora-ranks "),
        ({"lora_ranks": "q_proj=0"}, "--lora-ranks "),
        ({"lora_ranks": "q_proj=2.5"}, "--lora-ranks "),
        ({"lora_ranks": "q_prj=2"}, "there is no linear 'q_prj' (did you mean q_proj?)"),
        ({"lora_ranks": {"q_proj": True}}, "--lora-ranks "),
        ({"lora_alphas": "q_proj=inf"}, "--lora-alphas "),
        ({"lora_layers": "0"}, "--lora-layers "),
        ({"lora_layers": "-1,2"}, "--lora-layers "),
        ({"lora_layers": "a"}, "--lora-layers "),
        ({"lora_layers": True}, "--lora-layers "),
        ({"lora_plus": 0.5}, "--lora-plus "),
        ({"lr_schedule": "step"}, "--lr-schedule "),
        ({"lora_layers": 5}, "--lora-layers: 5"),
        ({"lora_layers": "1,4"}, "--lora-layers: 1,4"),
        ({"lora_ranks": "down_proj=4"}, "--lora-ranks: down_proj gets no adapter"),
        ({"lora_ranks": "k_proj=40"}, "--lora-ranks: rank 40 is larger than k_proj (32)"),
        ({"lora_r": 40}, "rank 40 is larger than the smallest target"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RescoldoError) as error:
        _lora(**fields)
    assert message in f"{error.value.where}: {error.value.what}" or message in error.value.what


def test_a_larger_rank_is_allowed_where_every_target_has_its_own() -> None:
    assert _lora(lora_r=40, lora_targets="k_proj", lora_ranks="k_proj=2").rank_of("k_proj") == 2


def test_other_programs_names_are_known() -> None:
    for name, here in (("use_dora", "adapter"), ("rank_pattern", "lora_ranks"), ("layers_to_transform", "lora_layers")):
        with pytest.raises(RescoldoError, match=rf"did you mean {here}"):
            make_config({**PATHS, name: "x"})


def test_the_default_is_what_it_was() -> None:
    assert lora_config(RunConfig(train=Path("a"), val=Path("b"), output=Path("c")), 3) == LoraConfig()
