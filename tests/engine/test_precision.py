"""What bf16, int8 and nf4 cost: per linear on weights and inputs with outliers, and in the sample model's gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.quality import Numbers, in_nf4

from rescoldo.base import open_base
from rescoldo.base.model import BaseModel
from rescoldo.data import read_records
from rescoldo.data.tokenize import tokenize_records
from rescoldo.engine.config import LINEARS
from rescoldo.engine.int8 import N_OUTLIERS, Int8Linear, smoothing
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.engine.linear import FrozenLinear, PlainLinear
from rescoldo.engine.model import LoraModel
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.engine.common import cosine, distance, example, gradient, randomize, tiny_base, tiny_lora

torch.set_num_threads(1)

DATA = Path(__file__).parents[2] / "artifacts" / "synthetic" / "ba_train_v2_fixed.jsonl"


# --- one linear -------------------------------------------------------------------------------------------------------


def _weights(*outs: int, into: int, seed: int = 0) -> list[torch.Tensor]:
    """Linears that share an input, rows of uneven size, a few heavy columns."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out, into, generator=generator) * into**-0.5 for out in outs]
    for weight in weights:
        weight.mul_(torch.exp(0.5 * torch.randn(weight.shape[0], 1, generator=generator)))
        weight[:, 3 % into] *= 8
    return weights


def _inputs(t: int, into: int, outliers: int, seed: int = 1) -> torch.Tensor:
    """Activations as decoders have them: `outliers` columns 60 times as wide as the others, a few hundred times one."""
    x = torch.randn(t, into, generator=torch.Generator().manual_seed(seed))
    wide = torch.randperm(into, generator=torch.Generator().manual_seed(into))[:outliers]  # the same at any `t`
    x[:, wide] *= 60
    x[0, wide[:1]] *= 5
    return x


def _error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def _make(precision: str, weights: list[torch.Tensor], inputs: torch.Tensor) -> FrozenLinear:
    if precision == "int8":
        return Int8Linear(weights, *smoothing(inputs.abs().amax(0), weights))
    if precision == "nf4":
        blocks = [in_nf4(weight) for weight in weights]
        return Int8Linear(blocks, *smoothing(inputs.abs().amax(0), blocks), unpacked=False)
    return PlainLinear(weights, torch.float32 if precision == "fp32" else torch.bfloat16)


def _forward(linear: FrozenLinear, x: torch.Tensor) -> torch.Tensor:
    return linear.adapted(None, None).forward(x.to(linear.dtype), None)[0]


def _backward(linear: FrozenLinear, dy: torch.Tensor) -> torch.Tensor:
    x = torch.zeros(dy.shape[0], linear.in_features, dtype=linear.dtype)
    dx, gradients = linear.adapted(None, None).backward(
        dy.to(linear.dtype), x, torch.zeros(len(x), N_OUTLIERS), None, True
    )
    assert not gradients
    assert dx is not None
    return dx


SHAPES = [(1, (64,), 64), (5, (192, 64, 64), 192), (40, (576, 192, 192), 576), (33, (576,), 1536), (7, (96, 32), 320)]


@pytest.mark.parametrize(("t", "outs", "into"), SHAPES)
@pytest.mark.parametrize("outliers", [0, 4, 16])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_a_linears_products(precision: str, t: int, outs: tuple[int, ...], into: int, outliers: int) -> None:
    """Against float64: of the true weight for fp32, bf16 and int8, of its own 4-bit weight for nf4."""
    weights, x = _weights(*outs, into=into), _inputs(t, into, outliers)
    linear = _make(precision, weights, _inputs(64, into, outliers, seed=9))
    own = [TorchKernels().blocks_decode([in_nf4(weight)]) for weight in weights] if precision == "nf4" else weights
    exact = torch.cat(own).double()
    dy = torch.randn(t, sum(outs), generator=torch.Generator().manual_seed(2))
    limits = {"fp32": 1e-6, "bf16": 0.006, "int8": 0.02, "nf4": 0.02}
    assert _error(_forward(linear, x), x.double() @ exact.T) < limits[precision]
    assert _error(_backward(linear, dy), dy.double() @ exact) < limits[precision]
    assert (linear.out_features, linear.in_features) == (sum(outs), into)


@pytest.mark.parametrize("into", [64, 576])
def test_dense_is_the_weight(into: int) -> None:
    weights = _weights(64, 32, into=into)
    true = torch.cat(weights)
    for precision, limit in (("fp32", 0.0), ("bf16", 0.003), ("int8", 0.015), ("nf4", 0.15)):
        dense = _make(precision, weights, _inputs(64, into, 4)).dense()
        assert dense.shape == true.shape
        assert dense.dtype == torch.float32
        assert _error(dense, true) <= limit


def test_outliers_kept_apart_are_what_saves_int8() -> None:
    """Without smoothing and columns apart the same product is several times as far off."""
    weights, x = _weights(128, into=576), _inputs(50, 576, 8)
    exact = x.double() @ torch.cat(weights).double().T
    treated = _forward(_make("int8", weights, x), x)
    plain = _forward(Int8Linear(weights, torch.ones(576), torch.empty(0, dtype=torch.int64)), x)
    # the ordinary columns' contribution is what drowns: measure the error against it
    assert _error(treated, exact) < 0.3 * _error(plain, exact)


def test_the_widest_columns_are_kept_apart() -> None:
    x = _inputs(50, 576, 10)
    columns, apart = smoothing(x.abs().amax(0), _weights(64, into=576))
    assert len(apart) == N_OUTLIERS
    assert apart.tolist() == sorted(set(apart.tolist()))
    assert (columns > 0).all()
    assert set(x.abs().amax(0).topk(10).indices.tolist()) <= set(apart.tolist())


def test_columns_that_calibration_never_saw() -> None:
    """A dead input column in calibration that comes alive later must not blow up."""
    weights, x = _weights(64, into=128), _inputs(30, 128, 2)
    x[:, 40:60] = 0
    linear = _make("int8", weights, x)
    x[:, 40:60] = torch.randn(30, 20, generator=torch.Generator().manual_seed(3))
    assert _forward(linear, x).isfinite().all()
    zeros = torch.zeros(64, 128)
    assert not _forward(_make("int8", [zeros], x), x).any()


def test_large_weights_are_mapped_not_copied() -> None:
    parts = [torch.zeros(3000, 2048, dtype=torch.bfloat16), torch.zeros(2000, 2048, dtype=torch.bfloat16)]
    linear = PlainLinear(parts, torch.bfloat16)
    assert [part.data_ptr() for part in linear.parts] == [part.data_ptr() for part in parts]
    parts[1][5, 7] = 2.0
    y = linear.forward(torch.ones(2, 2048, dtype=torch.bfloat16), torch.ones(2, 5000, dtype=torch.bfloat16))
    assert y[0, 3005] == 3.0
    assert y.sum() == 5000 * 2 + 4
    dy = torch.zeros(1, 5000, dtype=torch.bfloat16)
    dy[0, 3005] = 1.5
    assert linear.input_grad(dy)[0, 7] == 3.0


def test_int8_without_examples_and_nf4_of_odd_widths_are_refused() -> None:
    for precision in ("int8", "nf4"):
        with pytest.raises(RescoldoError, match=f"{precision} needs examples"):
            LoraModel.load(tiny_base("llama", intermediate_size=128), precision, None, seed=0)
    with pytest.raises(RescoldoError, match="multiple of 64: down_proj has 96"):
        LoraModel.load(tiny_base("llama"), "nf4", None, seed=0)


# --- whole gradients --------------------------------------------------------------------------------------------------


def test_tiny_gradients_in_every_precision() -> None:
    """Random weights have no structure for quantization to keep, so the limits are wide."""
    examples = [example(4 + i, 12, seed=i, prefix=range(20)) for i in range(4)]
    for architecture in ("llama", "qwen2", "qwen3"):
        _, exact = gradient(tiny_lora(architecture, intermediate_size=128), examples)
        for precision, limit in (("bf16", 0.999), ("int8", 0.98)):
            ours = gradient(tiny_lora(architecture, precision, intermediate_size=128), examples)[1]
            assert cosine(ours, exact) > limit, (architecture, precision)
        model = tiny_lora(architecture, "nf4", intermediate_size=128)
        base = tiny_base(architecture, intermediate_size=128)
        own = LoraModel.load(replace(base, tensors=Numbers(base, rounded=True)), "fp32", model.lora, seed=7)
        randomize(own)
        assert cosine(gradient(model, examples)[1], gradient(own, examples)[1]) > 0.98


@pytest.fixture(scope="module")
def sample() -> tuple[BaseModel, list[Example], list[Example], LoraConfig]:
    """The sample model, two of the data's examples to measure on, four others to calibrate on."""
    base, role = open_base("sample:smollm2"), get_role("ba")
    examples = tokenize_records(read_records(DATA)[:24], role, base.tokenizer(), 2048).examples
    ordered = sorted(examples, key=lambda one: len(one.tokens))
    return base, ordered[0:4:2], ordered[1:9:2], LoraConfig(rank=8, alpha=16, dropout=0.0, targets=LINEARS)


@pytest.fixture(scope="module")
def exact(sample: tuple[BaseModel, list[Example], list[Example], LoraConfig]) -> tuple[float, dict[str, torch.Tensor]]:
    base, measured, _, lora = sample
    model = LoraModel.load(base, "fp32", lora, seed=7)
    randomize(model, size=0.02)
    return gradient(model, measured)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "limit"),
    [
        ("bf16", 0.999),
        ("int8", 0.995),
        ("nf4", 0.995),
    ],
)
def test_the_sample_models_gradient(
    sample: tuple[BaseModel, list[Example], list[Example], LoraConfig],
    exact: tuple[float, dict[str, torch.Tensor]],
    precision: str,
    limit: float,
) -> None:
    """Cosine of the whole LoRA gradient with fp32's on real examples; nf4's with that of its own weights in fp32."""
    base, measured, calibration, lora = sample
    if precision == "nf4":  # the sample's own 4-bit blocks would be taken as they are
        base = replace(base, tensors=Numbers(base, rounded=False))
    model = LoraModel.load(base, precision, lora, seed=7, calibration=calibration)
    randomize(model, size=0.02)
    loss, ours = gradient(model, measured)
    reference_loss, reference = exact
    if precision == "nf4":
        print(f"nf4 against the unquantized model: cosine {cosine(ours, reference):.5f}, loss {loss:.4f}")
        own = LoraModel.load(replace(base, tensors=Numbers(base, rounded=True)), "fp32", lora, seed=7)
        randomize(own, size=0.02)
        loss, ours = gradient(model, measured[:1])
        reference_loss, reference = gradient(own, measured[:1])
    similarity = cosine(ours, reference)
    worst = min((cosine({"": ours[name]}, {"": reference[name]}), name) for name in ours)
    print(
        f"{precision}: cosine {similarity:.5f}, distance {distance(ours, reference):.4f}, loss {loss:.4f} "
        f"of {reference_loss:.4f}, worst tensor {worst[0]:.4f} {worst[1]}"
    )
    assert loss == pytest.approx(reference_loss, rel=0.01)
    assert similarity >= limit
