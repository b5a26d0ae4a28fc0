"""Where settings come from that the user did not give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rescoldo.engine.config import LINEARS
from rescoldo.files import write_json
from rescoldo.run.layout import RUN_FILE
from rescoldo.training.config import ATTENTION, RunConfig
from rescoldo.training.prepare import with_preset
from rescoldo.training.preset import apply_preset
from tests.training.fake import DECODER, PARTS, open_base

SMALL = replace(DECODER, hidden_size=576, intermediate_size=1536, head_dim=64)  # the sample's
LARGE = replace(DECODER, hidden_size=4096, intermediate_size=14336, head_dim=128)  # Mistral-7B's


def make(**fields: Any) -> RunConfig:
    return RunConfig(**({"train": Path("a"), "val": Path("b"), "output": Path("c")} | fields))


def test_settings_that_are_not_given_are_the_tested_ones() -> None:
    config, filled = apply_preset(make(), SMALL)
    assert (config.epochs, config.lr, config.grad_accum, config.warmup) == (2, 1.5e-3, 4, 0.08)
    assert (config.lora_r, config.lora_alpha, config.lora_targets) == (16, 64.0, LINEARS)
    assert set(filled) >= {"epochs", "lr", "grad_accum", "lora_r", "lora_alpha", "lora_targets"}


def test_the_original_preset_has_the_originals_values() -> None:
    """Those of the original script, its targets included, which had no flag."""
    config, filled = apply_preset(make(preset="original"), SMALL)
    assert filled == {}
    assert (config.epochs, config.lr, config.grad_accum, config.batch_size) == (3, 2e-4, 8, 1)
    assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (8, 32.0, 0.1)
    assert (config.lora_targets, config.max_length, config.seed) == (ATTENTION, 2048, 42)
    assert config.lr_schedule == "cosine"


@pytest.mark.parametrize("preset", ["tuned", "original"])
def test_what_is_given_is_kept(preset: str) -> None:
    given = {"epochs": 3, "lr": 2e-4, "grad_accum": 8, "lora_r": 8, "lora_alpha": 32.0, "lora_targets": ATTENTION}
    config, filled = apply_preset(make(preset=preset, **given), LARGE)
    assert {name: getattr(config, name) for name in given} == given
    assert not set(filled) & set(given)


def test_the_rate_falls_with_the_hidden_size_and_grows_with_the_step() -> None:
    def rate(decoder: Any, **fields: Any) -> float:
        return apply_preset(make(**fields), decoder)[0].lr

    assert rate(LARGE) == pytest.approx(3.2e-4)
    assert rate(DECODER) == 1.5e-3, "not above what was measured"
    assert rate(SMALL, grad_accum=1) == rate(SMALL, batch_size=2) == 1.5e-3
    assert rate(SMALL, grad_accum=8) == rate(SMALL, batch_size=16) == 2e-3


def test_alpha_follows_the_rank() -> None:
    assert apply_preset(make(lora_r=4), SMALL)[0].lora_alpha == 16.0
    tiny, _ = apply_preset(make(), DECODER)
    assert (tiny.lora_r, tiny.lora_alpha) == (4, 16.0), "the narrowest linear has 4 outputs"


def test_machines_that_share_a_step_have_examples_for_each() -> None:
    config, _ = apply_preset(make(), SMALL, machines=True)
    assert (config.grad_accum, config.lr) == (8, 2e-3)
    assert apply_preset(make(batch_size=2), SMALL)[0].grad_accum == 2
    assert apply_preset(make(batch_size=6), SMALL)[0].grad_accum == 1


def test_a_run_that_is_resumed_keeps_what_it_was_started_with(tmp_path: Path) -> None:
    """Other values of the preset, as another version had them or several machines; what the user gave is his."""
    parts, base = PARTS, open_base("fake")
    fields = {"epochs": 7, "warmup": 6.0, "lr": 9e-3, "no_field": 1, "preset": "tuned", "grad_accum": 8}
    write_json(tmp_path / RUN_FILE, {"config": fields, "from_preset": ["epochs", "warmup", "no_field"]})
    asked = make(output=tmp_path)
    config, filled = with_preset(asked, base, parts)
    assert (config.epochs, config.warmup) == (7, 6.0)
    assert (config.lr, config.grad_accum) == (1.5e-3, 4), "given then: to be given again, which the refusal says"
    assert config.lr_schedule == "cosine", "a field that came later"
    assert {"epochs", "warmup"} <= set(filled)
    assert with_preset(make(output=tmp_path, epochs=5), base, parts)[0].epochs == 5
    assert with_preset(asked, base, parts, restart=True)[0].epochs == 2
    assert with_preset(make(output=tmp_path, preset="original"), base, parts)[0].epochs == 3
    shared = replace(parts, resumable_steps=False)
    assert with_preset(make(output=tmp_path / "new"), base, shared)[0].grad_accum == 8


def test_a_run_from_before_this_preset_goes_on_with_the_defaults_of_then(tmp_path: Path) -> None:
    fields = {"epochs": 3, "lr": 5e-4, "grad_accum": 8, "lora_r": 8, "lora_targets": list(ATTENTION)}
    write_json(tmp_path / RUN_FILE, {"config": fields, "from_preset": []})
    config, _ = with_preset(make(output=tmp_path, lr=5e-4), open_base("fake"), PARTS)
    assert (config.epochs, config.lr, config.grad_accum, config.lora_r) == (3, 5e-4, 8, 8)
    assert (config.lora_targets, config.lora_alpha, config.lr_schedule) == (ATTENTION, 32.0, "cosine")
