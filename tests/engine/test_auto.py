"""`--quantization auto`: the fastest precision that fits, never bf16 where bf16 is slow."""

from __future__ import annotations

import json

import pytest

from rescoldo.engine import auto, memory
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.types import LoraConfig

MISTRAL = DecoderConfig("mistral", 32000, 4096, 14336, 32, 32, 8, 128, 1e-5, 1e4, 32768)
FAST_INT8 = {"fp32": 150e9, "bf16": 400e9, "int8": 750e9}
NO_BF16 = {"fp32": 150e9, "bf16": 20e9, "int8": 40e9}  # a CPU that emulates bf16, and has no VNNI
GB = 10**9


@pytest.mark.parametrize(
    ("rates", "free", "expected"),
    [
        (FAST_INT8, 24 * GB, "int8"),
        (FAST_INT8, 14 * GB, "int8"),
        (FAST_INT8, 8 * GB, "nf4"),
        ({**FAST_INT8, "int8": 300e9}, 24 * GB, "bf16"),
        (NO_BF16, 64 * GB, "fp32"),
        (NO_BF16, 24 * GB, "int8"),
    ],
)
def test_the_fastest_that_fits(rates: dict[str, float], free: int, expected: str) -> None:
    choice = auto.choose_precision(MISTRAL, rates, free)
    assert choice.precision == expected
    assert "G operations/s" in choice.reason


def test_where_nothing_fits_it_says_so() -> None:
    choice = auto.choose_precision(MISTRAL, FAST_INT8, 2 * GB)
    assert choice.precision == "nf4"
    assert "2.0 GB are free" in choice.reason


def test_nf4_is_not_chosen_for_widths_it_cannot_hold() -> None:
    odd = DecoderConfig("llama", 1000, 4128, 11000, 32, 32, 32, 129, 1e-5, 1e4, 2048)
    assert auto.choose_precision(odd, FAST_INT8, GB).precision != "nf4"


def test_rates_are_cached_and_a_damaged_cache_is_measured_again(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(auto, "_SECONDS", 0.01)
    first = auto.product_rates(64, 64)
    assert auto.product_rates(64, 64) == first
    path = tmp_path / "rescoldo" / "products.json"
    assert len(json.loads(path.read_text())) == 1
    path.write_text('{"x": 1')
    assert all(rate > 0 for rate in auto.product_rates(64, 64).values())


def needed(precision: str, stored: int | None = None) -> int:
    return memory.memory_need(MISTRAL, precision, LoraConfig(), 1024, stored).full


def test_memory_needed_of_7b() -> None:
    """7B in int8: 7 GB of weights, 0.5 GB of embeddings, activations of one example, the process."""
    assert 8 * GB < needed("int8") < 13 * GB
    assert 5 * GB < needed("nf4") < 9 * GB
    stored = needed("int8", int(4.1e9))
    assert needed("nf4") < stored < needed("int8") - 2 * GB


def test_the_choice_is_made_by_the_same_model_as_the_checks() -> None:
    """A precision is chosen from that free memory on with which `doctor` says that all of it fits."""
    rates = {"fp32": 9e9, "bf16": 1e9, "int8": 2e9}
    enough = int(needed("fp32") / memory.HEADROOM)
    assert auto.choose_precision(MISTRAL, rates, enough + 2).precision == "fp32"
    assert auto.choose_precision(MISTRAL, rates, enough - 2).precision == "int8"


def test_layers_are_kept_as_far_as_they_fit() -> None:
    per_layer = memory.kept_bytes(MISTRAL, 2, 700)
    assert memory.layers_to_keep(MISTRAL, 2, 700, None, 100 * GB) == 32
    assert memory.layers_to_keep(MISTRAL, 2, 700, None, 100_000) == 0
    some = memory.layers_to_keep(MISTRAL, 2, 700, None, 14 * per_layer + 500_000_000)
    assert 0 < some < 32


def test_int8_is_not_chosen_where_its_ranges_cannot_be_measured() -> None:
    assert auto.choose_precision(MISTRAL, FAST_INT8, 24 * GB, calibrated=False).precision == "bf16"
