"""The C kernels against their PyTorch twins: odd sizes, strides, windows, several examples, prefixes, extremes."""

from __future__ import annotations

import ctypes
import inspect
import itertools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rescoldo.engine.int8 import Int8Linear, smoothing
from rescoldo.engine.kernels import build as build_module
from rescoldo.engine.kernels import choose, selftest
from rescoldo.engine.kernels import native as native_module
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import KINDS, LazyInt8, QuantizedMatrix
from rescoldo.engine.kernels.build import INSTRUCTION_SETS, C, instruction_set, library, usable
from rescoldo.engine.kernels.native import BuildError, NativeKernels
from rescoldo.engine.kernels.ops import NF4_LEVELS, Dropout
from rescoldo.engine.kernels.ops_int8 import Quantized, level_type, pack_panels, padded, unpack_panels
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.engine.linear import Adapter, Member
from rescoldo.errors import RescoldoError
from rescoldo.system import cpu
from tests.engine.common import cosine, example, gradient, tiny_lora

torch.set_num_threads(1)

HALVES = torch.bfloat16
PYTORCH = TorchKernels()
STEP = 2.0**-8  # bfloat16's relative rounding error


# all that this CPU can run, the fastest first
NAMES = [row.name for row in usable(cpu.instructions(), vendor=cpu.vendor())]


@cache
def _native(name: str) -> NativeKernels:
    try:
        return NativeKernels(name)
    except BuildError as error:
        if os.environ.get("CI") == "true" and shutil.which("gcc"):
            raise
        pytest.skip(f"no native kernels here: {error}")


def _lanes(name: str) -> str:
    """The header that an instruction set's lane operations are in."""
    header = instruction_set(name).header
    while found := re.search(r'#include "((?:lanes|bytes)\w+\.h)"', (C / "isa" / header).read_text(encoding="utf-8")):
        header = found[1]
        if header.startswith("lanes"):
            return header
    raise AssertionError(f"{name}: no lanes")


# the fastest of each lane width: what is written once for all sets is compiled to nothing else with the others
BY_LANES = list({_lanes(name): name for name in reversed(NAMES)}.values())[::-1]


@pytest.fixture(scope="module", params=NAMES)
def native(request: pytest.FixtureRequest) -> NativeKernels:
    """The kernels of each instruction set that this CPU has."""
    return _native(request.param)


@pytest.fixture(scope="module", params=BY_LANES)
def lanes(request: pytest.FixtureRequest) -> NativeKernels:
    """The kernels of one instruction set for each lane width, for operations that are the same with all of them."""
    return _native(request.param)


def _twins(native: NativeKernels) -> TorchKernels:
    """With inputs of int8 products quantized to as many levels."""
    twins = TorchKernels()
    twins.qmax = native.qmax
    return twins


def _random(*shape: int, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def _halves(*shape: int, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    return _random(*shape, seed=seed, size=size).to(HALVES)


def _close(ours: torch.Tensor, theirs: torch.Tensor, *, steps: float = 2.0, floor: float = 1e-6) -> None:
    """Within a few bfloat16 steps of each element (and `floor` of the largest one)."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert ours.isfinite().all()
    a, b = ours.double(), theirs.double()
    allowed = steps * STEP * b.abs() + floor * b.abs().max()
    assert ((a - b).abs() <= allowed).all(), float(((a - b).abs() - allowed).max())


def _near(ours: torch.Tensor, theirs: torch.Tensor, worst: float = 0.02, mean: float = 0.004) -> None:
    """For sums of bfloat16 products: relative error of the whole and, against the spread, of the worst element."""
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    a, b = ours.double(), theirs.double()
    scale = b.norm() / b.numel() ** 0.5
    assert (a - b).norm() <= mean * b.norm() + 1e-12
    assert (a - b).abs().max() <= worst * (scale + b.abs().max())


def _cases(*axes: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """The product of `axes`, for one test of one set of kernels. The last one printed is the one that failed."""
    for case in itertools.product(*axes):
        print(case)
        yield case


SIZES = [(1, 16), (3, 7), (5, 64), (2, 63), (17, 65), (130, 576), (1, 1536), (4, 4097)]


def test_every_kernel_has_a_test() -> None:
    """A new kernel must come here too."""
    own = {
        name for name, value in vars(NativeKernels).items() if inspect.isfunction(value) and not name.startswith("_")
    }
    tested = inspect.getsource(sys.modules[__name__])
    assert own
    indirectly = {"int8_product", "outer_rows", "int8_residual_"}  # as one of several
    assert indirectly < own
    assert all(re.search(rf"\b(native|lanes)\.{name}\(", tested) for name in own - indirectly)
    assert own <= set(vars(TorchKernels))
    for name in own:
        assert list(inspect.signature(getattr(NativeKernels, name)).parameters) == list(
            inspect.signature(getattr(TorchKernels, name)).parameters
        )


# --- small operations -------------------------------------------------------------------------------------------------


def test_rms_norm(lanes: NativeKernels) -> None:
    for (t, d), size in _cases(SIZES, [1e-3, 1.0, 300.0]):
        h, weight = _random(t, d, size=size), _halves(d, seed=1)
        ours, theirs = lanes.rms_norm(h, weight, 1e-5), PYTORCH.rms_norm(h, weight, 1e-5)
        _close(ours[1], theirs[1])
        _close(ours[0], theirs[0], steps=4)  # rounded twice
        torch.testing.assert_close(ours[2], theirs[2], rtol=1e-5, atol=0)
        dy, dh = _halves(t, d, seed=2), _random(t, d, seed=3)
        mine, other = dh.clone(), dh.clone()
        lanes.rms_norm_backward(dy, theirs[1], theirs[2], weight, mine)
        PYTORCH.rms_norm_backward(dy, theirs[1], theirs[2], weight, other)
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * float((other - dh).abs().max() + 1))


def test_rms_norm_takes_views(lanes: NativeKernels) -> None:
    wide, weight = _random(9, 40), _halves(20, seed=1)
    view = wide[:, 10:30]
    for a, b in zip(lanes.rms_norm(view, weight, 1e-6), PYTORCH.rms_norm(view, weight, 1e-6), strict=True):
        torch.testing.assert_close(a, b, rtol=2 * STEP, atol=1e-6)
    _, normed, rstd = PYTORCH.rms_norm(view, weight, 1e-6)
    dy = _halves(9, 60, seed=4)[:, ::3]
    mine, other = torch.zeros(18, 20)[::2], torch.zeros(9, 20)  # a gradient buffer with holes
    lanes.rms_norm_backward(dy, normed, rstd, weight, mine)
    PYTORCH.rms_norm_backward(dy, normed, rstd, weight, other)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_rms_norm_of_a_zero_row(lanes: NativeKernels) -> None:
    x, normed, rstd = lanes.rms_norm(torch.zeros(2, 33), torch.ones(33, dtype=HALVES), 1e-5)
    assert not x.any()
    assert not normed.any()
    assert rstd.isfinite().all()


def test_add(lanes: NativeKernels) -> None:
    for ((t, d),) in _cases(SIZES):
        h, y = _random(t, d), _halves(t, d, seed=1)
        for addend in (y, _halves(d, t, seed=2).T, _random(t, d, seed=3)):
            ours, theirs = h.clone(), h.clone()
            lanes.add_(ours, addend)
            PYTORCH.add_(theirs, addend)
            assert torch.equal(ours, theirs)


def test_silu_mul(lanes: NativeKernels) -> None:
    for (t, f), size in _cases(SIZES, [1.0, 60.0]):
        gate_up, da = _halves(t, 2 * f, size=size), _halves(t, f, seed=1)
        _close(lanes.silu_mul(gate_up), PYTORCH.silu_mul(gate_up), floor=1e-5)
        ours, turned, theirs = gate_up.clone(), gate_up.clone(), gate_up.clone()
        lanes.silu_mul_backward_(ours, da)
        lanes.silu_mul_backward_(turned, da.T.contiguous().T)
        PYTORCH.silu_mul_backward_(theirs, da)
        _close(ours, theirs, floor=1e-4)
        assert torch.equal(ours, turned)


def test_silu_mul_of_extremes(lanes: NativeKernels) -> None:
    gate_up = torch.tensor([[-1e4, -100.0, -88.5, -20.0, 0.0, 20.0, 100.0, 1e4, *([2.0] * 8)]]).to(HALVES)
    _close(lanes.silu_mul(gate_up), PYTORCH.silu_mul(gate_up), floor=1e-7)
    da = torch.ones(1, 8, dtype=HALVES)
    ours, theirs = gate_up.clone(), gate_up.clone()
    lanes.silu_mul_backward_(ours, da)
    PYTORCH.silu_mul_backward_(theirs, da)
    _close(ours, theirs, floor=1e-6)


def test_gelu_mul(lanes: NativeKernels) -> None:
    for (t, f), size in _cases(SIZES, [1.0, 60.0]):
        gate_up, da = _halves(t, 2 * f, size=size), _halves(t, f, seed=1)
        gate_up[0, 0], gate_up[-1, -1] = -1e4, 1e4
        _close(lanes.gelu_mul(gate_up), PYTORCH.gelu_mul(gate_up), floor=1e-5)
        ours, transposed, theirs = gate_up.clone(), gate_up.clone(), gate_up.clone()
        lanes.gelu_mul_backward_(ours, da)
        lanes.gelu_mul_backward_(transposed, da.T.contiguous().T)
        PYTORCH.gelu_mul_backward_(theirs, da)
        _close(ours, theirs, floor=1e-4)
        assert torch.equal(ours, transposed)


def test_gelu_mul_backward_is_what_autograd_says() -> None:
    gate_up, da = _random(9, 40, size=4.0), _random(9, 20, seed=1)
    leaf = gate_up.double().requires_grad_()
    gate, up = leaf.chunk(2, dim=-1)
    (torch.nn.functional.gelu(gate, approximate="tanh") * up).backward(da.double())
    PYTORCH.gelu_mul_backward_(gate_up, da)
    assert leaf.grad is not None
    torch.testing.assert_close(gate_up, leaf.grad.float(), rtol=1e-5, atol=1e-5)


def test_rotate(lanes: NativeKernels) -> None:
    for d, sign in _cases([2, 8, 16, 24, 64, 128], [1.0, -1.0]):
        t, heads, n_kv = 13, 3, 1
        angles = _random(t, d // 2, size=50.0)
        cos, sin = angles.cos(), angles.sin()
        packed = _halves(t, (heads + 2 * n_kv) * d, seed=1)
        ours, theirs = packed.clone(), packed.clone()
        for buffer, implementation in ((ours, lanes), (theirs, PYTORCH)):
            q, k, _ = buffer.unflatten(1, (-1, d)).split([heads, n_kv, n_kv], dim=1)
            implementation.rotate_(q, cos, sin, sign)
            implementation.rotate_(k, cos, sin, sign)
        _close(ours, theirs, floor=STEP / 4)
        assert torch.equal(ours[:, (heads + n_kv) * d :], packed[:, (heads + n_kv) * d :])  # v is left alone
        apart = _halves(t, d, heads, seed=2).transpose(1, 2)  # columns not side by side
        ours, theirs = apart.clone(), apart.clone()
        lanes.rotate_(ours, cos, sin, sign)
        PYTORCH.rotate_(theirs, cos, sin, sign)
        _close(ours, theirs, floor=STEP / 4)


# --- dropout ----------------------------------------------------------------------------------------------------------


def _how(t: int, threshold: int = 26, key: int = 0xDEADBEEF) -> Dropout:
    return Dropout(threshold, key, torch.arange(t) * 7 + (3 << 18))


def test_dropout_masks_are_identical(lanes: NativeKernels) -> None:
    for (t, d), threshold in _cases(SIZES, [1, 26, 128, 255]):
        x, how = _halves(t, d), _how(t, threshold)
        assert torch.equal(lanes.dropout(x, how), PYTORCH.dropout(x, how))
        assert torch.equal(lanes.dropout(torch.ones_like(x), how) != 0, how.mask(d))
        dx = _halves(t, d, seed=1)
        ours, theirs = dx.clone(), dx.clone()
        lanes.dropout_backward(ours, x, how)
        PYTORCH.dropout_backward(theirs, x, how)
        _close(ours, theirs, floor=1e-6)
        assert torch.equal(ours == dx, (x == 0) | ~how.mask(d) | (ours == dx))  # dropped elements stay as they were
        assert torch.equal(ours[~how.mask(d)], dx[~how.mask(d)])


def test_dropout_of_views_and_without_a_mask(lanes: NativeKernels) -> None:
    x, how = _halves(64, 10).T, _how(10)
    assert torch.equal(lanes.dropout(x, how), PYTORCH.dropout(x, how))
    ours, theirs = _halves(10, 64, seed=1), _halves(10, 64, seed=1)
    lanes.dropout_backward(ours, x, None)
    PYTORCH.dropout_backward(theirs, x, None)
    assert torch.equal(ours, theirs)


# --- int8, nf4 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [16, 192])
def test_int8_input_quantizes_by_groups(native: NativeKernels, group: int) -> None:
    for (t, d), size in _cases(SIZES, [1e-20, 1.0, 1e20]):
        x = _halves(t, d, size=size)
        columns = _random(d, seed=1).abs() if d % 2 else None
        if columns is not None:
            columns[::5] = 0.0  # columns kept apart
        (ours, _), (theirs, _) = (k.int8_input(x, columns, group, [], None, 0, None) for k in (native, _twins(native)))
        assert ours is not None
        assert theirs is not None
        assert (ours.q.int() - theirs.q.int()).abs().max() <= 1
        assert (ours.q != theirs.q).float().mean() < 0.01
        torch.testing.assert_close(ours.scale, theirs.scale, rtol=1e-6, atol=0)
        wanted = torch.zeros(t, padded(d), dtype=torch.float64)
        wanted[:, :d] = x.double() if columns is None else x.double() * columns
        assert ours.q.shape == wanted.shape
        for g, start in enumerate(range(0, padded(d), group)):
            q, scale = ours.q[:, start : start + group].double(), ours.scale[:, g, None].double()
            assert ((q * scale - wanted[:, start : start + group]).abs() <= 0.501 * scale).all()
            assert (q.abs().amax(1) == native.qmax).logical_or(scale[:, 0] == 0).all()
            if ours.sum is not None:
                assert torch.equal(ours.sum[:, g], 128 * q.sum(1).int())
        assert (ours.sum is None) == (native.qmax > 127)


def test_int8_input_of_zeros_and_of_next_to_nothing(native: NativeKernels) -> None:
    x = torch.zeros(3, 40, dtype=HALVES)
    x[1] = _halves(40)
    rows, _ = native.int8_input(x, None, 192, [], None, 0, None)
    assert rows is not None
    assert not rows.q[[0, 2]].any()
    rows, _ = native.int8_input(torch.full((2, 8), 1e-39).to(HALVES), None, 192, [], None, 0, None)
    assert rows is not None
    assert not rows.q.any()  # 127 / largest would overflow
    assert not native.int8_input(_halves(9, 40), None, None, [], None, 0, None)[0]


def test_int8_residual_is_what_was_lost(native: NativeKernels) -> None:
    for (into,) in _cases([40, 600]):
        x, columns = _halves(7, into), _random(into, seed=1).abs() + 0.1
        columns[::5] = 0.0
        results = []
        for kernels in (native, _twins(native)):
            lost = x.clone()
            rows, _ = kernels.int8_input(x, columns, 192, [], None, 0, None)
            assert rows is not None
            kernels.int8_residual_(lost, columns, rows)
            again, _ = kernels.int8_input(lost, columns, 192, [], None, 0, None)
            assert again is not None
            scales = [r.scale.repeat_interleave(192, dim=1)[:, : r.q.shape[1]] for r in (rows, again)]
            held = (rows.q.double() * scales[0] + again.q.double() * scales[1])[:, :into]
            assert (held - x.double() * columns).abs().max() < 1e-3 * (x.double() * columns).abs().max()
            results.append(lost)
        assert not results[0][:, ::5].any()
        _near(results[0].double(), results[1].double(), worst=0.3, mean=0.02)  # a rounding that differs is a whole step


@given(out=st.integers(1, 70), into=st.integers(1, 70))
def test_panels_come_back(out: int, into: int) -> None:
    q = torch.randint(
        -127, 128, (out, into), dtype=torch.int8, generator=torch.Generator().manual_seed(out * 71 + into)
    )
    panels = pack_panels(q)
    assert panels.shape == (padded(out) // 16, padded(into) // 4, 16, 4)
    full = unpack_panels(panels)
    assert torch.equal(full[:out, :into], q)
    assert int(full.int().abs().sum()) == int(q.int().abs().sum())  # the padding is zero
    assert panels[(out - 1) // 16, (into - 1) // 4, (out - 1) % 16, (into - 1) % 4] == int(q[-1, -1]) + 128


def test_int8_pack(lanes: NativeKernels) -> None:
    for ((n, k),) in _cases([(1, 1), (16, 16), (33, 70), (200, 576)]):
        weight, columns = _halves(n, k), _random(k, seed=1).abs()
        weight[0] = 0
        columns[::7] = 0
        (ours, scale), (theirs, scale2) = lanes.int8_pack(weight, columns), PYTORCH.int8_pack(weight, columns)
        torch.testing.assert_close(scale, scale2, rtol=1e-6, atol=0)
        a, b = unpack_panels(ours).int(), unpack_panels(theirs).int()
        assert (a - b).abs().max() <= 1
        assert (a != b).float().mean() < 0.01
        exact = weight.double() * columns
        assert ((a[:n, :k] * scale[:, None].double() - exact).abs() <= 0.501 * scale[:, None].double()).all()


INT8_SHAPES = [
    (1, (64,), 64, 4), (5, (16, 16), 16, 1), (13, (24, 8, 8), 40, 4), (23, (96, 40), 72, 8),
    (37, (192, 64, 64), 192, 16), (61, (576,), 1536, 16), (12, (1536, 1536), 576, 16), (25, (33,), 21, 2),
    (25, (40,), 2100, 4), (770, (16,), 40, 2),
]  # fmt: skip
LARGE_INT8_SHAPES = [(50, (2100,), 2100, 8), (801, (48,), 2300, 8)]


def _int8(
    t: int, outs: tuple[int, ...], into: int, rank: int
) -> tuple[Int8Linear, Adapter, torch.Tensor, torch.Tensor]:
    weights = [_random(out, into, seed=i, size=0.05) for i, out in enumerate(outs)]
    x, dy = _halves(t, into, seed=7), _halves(t, sum(outs), seed=8)
    x[:, into // 2] *= 30
    bounds = [0, *itertools.accumulate(outs)]
    members = [
        Member(
            start,
            end,
            _random(rank, into, seed=9 + i, size=0.05),
            _random(end - start, rank, seed=19 + i, size=0.05),
            2.0 + i,
        )
        for i, (start, end) in enumerate(itertools.pairwise(bounds))
    ]
    members = members[:1] + members[2:]  # one linear of the group without an adapter
    return Int8Linear(weights, *smoothing(x.abs().amax(0).float(), weights)), Adapter(members, rank), x, dy


@pytest.mark.parametrize("shapes", [INT8_SHAPES, pytest.param(LARGE_INT8_SHAPES, marks=pytest.mark.slow)])
def test_an_int8_linear_with_its_adapter(
    native: NativeKernels, shapes: list[tuple[int, tuple[int, ...], int, int]]
) -> None:
    """Forward, input gradient, adapter gradients: native against twins, and both against the plain formulas."""
    for (t, outs, into, rank), drop in _cases(shapes, [False, True]):
        linear, adapter, x, dy = _int8(t, outs, into, rank)
        bias = _halves(sum(outs), seed=3)
        mask = Dropout(26, 12345, torch.arange(t) + 5) if drop else None
        results = []
        try:
            for implementation in (native, _twins(native)):
                choose.use(implementation)
                products = linear.adapted(adapter, bias)
                y, z = products.forward(x, mask)
                dx, gradients = products.backward(dy, x, z, mask, True)
                assert products.backward(dy, x, z, mask, False)[0] is None
                assert dx is not None
                results.append([y, dx, *(one for pair in gradients for one in pair)])
        finally:
            choose.use(None)
        for ours, theirs in zip(*results, strict=True):
            _near(ours, theirs, worst=0.02, mean=0.005)  # a bfloat16 step in either direction
        weight = linear.dense().double()
        dropped = x.double() * (mask.mask(into) * mask.scale if mask else 1.0)  # not rounded
        y, dx = x.double() @ weight.T + bias.double(), dy.double() @ weight
        extra = torch.zeros_like(dx)
        for (da, db), m in zip(zip(results[0][2::2], results[0][3::2], strict=True), adapter.members, strict=True):
            part, a, b = dy[:, m.start : m.end].double(), m.a.double(), m.b.double()
            y[:, m.start : m.end] += m.scale * (dropped @ a.T) @ b.T
            extra += m.scale * (part @ b) @ a
            _near(da.double(), m.scale * (part @ b).T @ dropped, worst=1e-4, mean=1e-5)
            _near(db.double(), m.scale * part.T @ (dropped @ a.T), worst=1e-4, mean=1e-5)
        dx += extra if mask is None else extra * mask.mask(into) * mask.scale
        _near(results[0][0].double(), y, worst=0.06, mean=0.012)
        _near(results[0][1].double(), dx, worst=0.06, mean=0.012)


def test_an_int8_product_is_exact(native: NativeKernels) -> None:
    """Extreme operands, and scales that are powers of two: sums are whole numbers that both hold without rounding."""
    shapes = [(1, 16, 1, 16), (33, 272, 80, 96), (50, 2112, 33, 192), (17, 80, 40, 96)]
    for (t, k, n, group), backward in _cases(shapes, [False, True]):
        generator = torch.Generator().manual_seed(t)
        inputs, outputs = (n, k) if backward else (k, n)
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator)
        q = torch.randint(-native.qmax, native.qmax + 1, (t, padded(inputs)), generator=generator)
        q[:, inputs:] = 0
        q[0], weight[0] = native.qmax * (torch.arange(q.shape[1]) < inputs), 127
        sums = [128 * part.sum(1) for part in q.split(group, dim=1)]
        rows = Quantized(
            q.to(level_type(native.qmax)),
            2.0 ** torch.randint(-24, -20, (t, len(sums)), generator=generator),
            torch.stack(sums, 1).int() if native.qmax == 127 else None,
            group,
        )
        arguments = (rows, pack_panels(weight), outputs, torch.ones(outputs), None, torch.zeros(t, 0), None, None)
        ours = native.int8_product(*arguments, backward=backward)
        exact = rows.q.double() * rows.scale.double().repeat_interleave(group, dim=1)[:, : q.shape[1]]
        exact = exact[:, :inputs] @ (weight.double() if backward else weight.double().T)
        if native.qmax == 127:
            assert torch.equal(ours, exact.float().to(HALVES))
        else:
            _close(ours, exact.to(HALVES), steps=1.0)


def test_threads_do_not_change_an_int8_linear(native: NativeKernels) -> None:
    linear, adapter, x, dy = _int8(50, (400,), 2100, 8)
    products, results = linear.adapted(adapter, None), []
    mask = Dropout(26, 12345, torch.arange(50))
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            y, z = products.forward(x, mask)
            dx, gradients = products.backward(dy, x, z, mask, True)
            results.append([y, dx, *gradients[0]])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_nf4_is_identical(lanes: NativeKernels) -> None:
    for shape, size in _cases([(1, 64), (3, 128), (7, 576), (33, 1536)], [1e-3, 1.0]):
        weight = _halves(*shape, size=size)
        weight[0, :64] = 0
        (packed, scales), (packed2, scales2) = lanes.nf4_pack(weight), PYTORCH.nf4_pack(weight)
        assert torch.equal(packed, packed2)
        assert torch.equal(scales, scales2)
        packed, scales = lanes.nf4_pack(weight.float())
        assert torch.equal(packed, packed2)
        assert torch.equal(lanes.nf4_pack(_halves(64, 5).T)[0], PYTORCH.nf4_pack(_halves(64, 5).T)[0])


def test_nf4_every_code_survives_and_is_the_nearest(lanes: NativeKernels) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(8, 32)
    scales = torch.full((8, 1), 2.0, dtype=HALVES)
    values = lanes.blocks_decode([QuantizedMatrix("nf4", codes, (8, 64), scales)])
    expected = 2 * NF4_LEVELS[torch.stack((codes & 15, codes >> 4), -1).flatten(1).int()]
    assert torch.equal(values, expected)
    weight = _halves(16, 256)
    packed, scales = lanes.nf4_pack(weight)
    blocks = weight.float().unflatten(1, (-1, 64)) / scales.float()[:, :, None]
    nearest = (blocks[..., None] - NF4_LEVELS).abs().amin(-1)
    chosen = NF4_LEVELS[torch.stack((packed & 15, packed >> 4), -1).flatten(1).int()].unflatten(1, (-1, 64))
    assert ((chosen - blocks).abs() <= nearest + 1e-6).all()


# --- weights in blocks ------------------------------------------------------------------------------------------------


def _blocks(kind: str, out: int, into: int, seed: int = 0, shuffled: bool = False) -> QuantizedMatrix:
    """Random weights as the gguf package or nf4_pack writes them (random bytes where it cannot: scales kept finite)."""
    weight = _random(out, into, seed=seed, size=0.05)
    order = torch.randperm(out, generator=torch.Generator().manual_seed(seed)) if shuffled else None
    if kind == "nf4":
        packed, scales = PYTORCH.nf4_pack(weight)
        return QuantizedMatrix(kind, packed, (out, into), scales, order)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if kind.endswith("_K"):
        data = np.random.default_rng(seed).integers(0, 256, (out, into // block, size), dtype=np.uint8)
        halves = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]
        for at in halves:
            values = np.random.default_rng(seed + at).uniform(0.001, 0.01, (out, into // block)).astype("<f2")
            data[:, :, at : at + 2] = values[..., None].view(np.uint8)
        data = data.reshape(out, -1)
    else:
        data = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    return QuantizedMatrix(kind, torch.from_numpy(data), (out, into), order=order)


def test_blocks_decode_to_the_same_numbers(native: NativeKernels) -> None:
    for (kind,) in _cases(KINDS):
        parts = [_blocks(kind, 37, 512, seed=1), _blocks(kind, 16, 512, seed=2, shuffled=True)]
        decoded = native.blocks_decode(parts)
        assert decoded.unique().numel() > 100
        assert torch.equal(decoded, PYTORCH.blocks_decode(parts))
        assert torch.equal(native.blocks_widest(parts), PYTORCH.blocks_widest(parts))
        columns, apart = torch.rand(512, generator=torch.Generator().manual_seed(3)) + 0.5, torch.tensor([0, 17, 511])
        for ours, theirs in zip(
            native.blocks_scale(parts, columns, apart), PYTORCH.blocks_scale(parts, columns, apart), strict=True
        ):
            assert torch.equal(ours, theirs)
        stored = LazyInt8(parts, columns, 127 / PYTORCH.blocks_scale(parts, columns, apart)[0])
        assert torch.equal(native.int8_unpack(stored), PYTORCH.int8_unpack(stored))


@pytest.mark.parametrize(
    "shapes",
    [[(5, 32, 256), (40, 33, 1536), (17, 48, 2304)], pytest.param([(801, 48, 2304)], marks=pytest.mark.slow)],
)
def test_a_linear_of_blocks_is_its_unpacked_one(native: NativeKernels, shapes: list[tuple[int, int, int]]) -> None:
    """Bit for bit, forward and backward, whatever the pieces."""
    mixtures = [("nf4",), ("Q4_K", "Q4_K", "Q6_K"), ("Q4_0", "Q8_0")]
    for kinds, (t, outs, into) in _cases(mixtures, shapes):
        parts = [_blocks(kind, outs, into, seed=i, shuffled=i == 0) for i, kind in enumerate(kinds)]
        x, dy = _halves(t, into, seed=7), _halves(t, outs * len(parts), seed=8)
        how = smoothing(x.abs().amax(0).float(), parts)
        adapter = Adapter([Member(0, outs, _random(4, into, seed=5), _random(outs, 4, seed=6), 2.0)], 4)
        results = []
        try:
            choose.use(native)
            for unpacked in (True, False):
                linear = Int8Linear(parts, *how, unpacked=unpacked)
                products = linear.adapted(adapter, None)
                y, z = products.forward(x, None)
                dx, gradients = products.backward(dy, x, z, None, True)
                assert dx is not None
                results.append([y, dx, *gradients[0], linear.dense()])
        finally:
            choose.use(None)
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours, theirs)
        exact = PYTORCH.blocks_decode(parts)
        assert (results[0][4] - exact).norm() < 0.02 * exact.norm()


# --- loss -------------------------------------------------------------------------------------------------------------


def test_cross_entropy(lanes: NativeKernels) -> None:
    for (n, v), size in _cases([(1, 2), (3, 17), (5, 288), (2, 49152), (65, 1000)], [0.01, 3.0, 100.0]):
        logits = _halves(n, v, size=size)
        targets = torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(1))
        theirs_loss, theirs = PYTORCH.cross_entropy(logits.clone(), targets, 0.037)
        ours_loss, ours = lanes.cross_entropy(logits.clone(), targets, 0.037)
        assert ours_loss == pytest.approx(theirs_loss, rel=1e-5, abs=1e-5 * n)
        _close(ours, theirs, floor=1e-6)
        expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
        assert ours_loss == pytest.approx(float(expected), rel=1e-5, abs=1e-5 * n)


def test_cross_entropy_of_a_certain_and_of_an_impossible_answer(lanes: NativeKernels) -> None:
    logits = torch.zeros(2, 40)
    logits[:, 3] = 500.0
    loss, gradient_ = lanes.cross_entropy(logits.to(HALVES), torch.tensor([3, 4]), 1.0)
    assert loss == pytest.approx(500.0, rel=1e-3)
    assert gradient_.isfinite().all()
    assert gradient_[0].abs().max() < 1e-6
    assert gradient_[1, 4] == -1.0
    assert gradient_[1, 3] == 1.0


def test_cross_entropy_of_what_is_no_number(lanes: NativeKernels) -> None:
    for at, wrong in itertools.product([2, 35], [float("nan"), float("inf")]):  # among whole vectors, and behind them
        logits = torch.zeros(1, 40)
        logits[0, at] = wrong
        loss, _ = lanes.cross_entropy(logits.to(HALVES), torch.tensor([3]), 1.0)
        assert not math.isfinite(loss), (at, wrong)


def test_int8_cross_entropy(native: NativeKernels) -> None:
    shapes = [(1, 2, 96), (3, 17, 96), (5, 288, 96), (2, 49152, 512), (33, 1000, 192)]
    for (n, v, group), size in _cases(shapes, [0.01, 3.0, 100.0]):
        logits, scale = _halves(n, v, size=size), _random(v, seed=2).abs() + 0.1
        targets = torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(1))
        loss, ours = native.int8_cross_entropy_(logits.clone(), targets, 0.037, scale, group)
        step_by_step, theirs = TorchKernels.int8_cross_entropy_(native, logits.clone(), targets, 0.037, scale, group)
        assert loss == step_by_step
        assert ours.group == theirs.group
        assert torch.equal(ours.q, theirs.q)
        assert torch.equal(ours.scale, theirs.scale)
        assert (ours.sum is None) == (theirs.sum is None)
        if ours.sum is not None and theirs.sum is not None:
            assert torch.equal(ours.sum, theirs.sum)
        passes = 2 if native.qmax == 127 else 1
        assert ours.q.shape == (passes * n, padded(v))
        held = ours.q.double() * ours.scale.double().repeat_interleave(group, dim=1)[:, : padded(v)]
        expected = PYTORCH.cross_entropy(logits.clone(), targets, 0.037)[1].double() * scale
        torch.testing.assert_close(
            held.view(n, passes, -1).sum(1)[:, :v], expected, rtol=2.5 * STEP, atol=2e-4 * float(expected.abs().max())
        )


def test_an_int8_heads_loss_is_that_of_its_products(native: NativeKernels) -> None:
    choose.use(native)
    try:
        # q in the logits' memory, and not; less memory than before, and more
        for v, n in itertools.product([288, 300], [7, 3, 12]):
            if n == 7:
                weight = _halves(v, 64)
                linear = Int8Linear([weight], *smoothing(torch.ones(64), [weight]), two_pass=True)
                products = linear.adapted(None, None)
            x, targets = _halves(n, 64, seed=n), torch.arange(n)
            loss, dx = products.cross_entropy(x, targets, 0.01)
            logits, z = products.forward(x, None)
            expected, dlogits = native.cross_entropy(logits, targets, 0.01)
            assert loss == expected
            expected_dx = products.backward(dlogits, x, z, None, True)[0]
            assert expected_dx is not None
            assert torch.equal(dx, expected_dx)
    finally:
        choose.use(None)


# --- attention --------------------------------------------------------------------------------------------------------

LAYOUTS: list[tuple[tuple[int, ...], int]] = [
    ((0, 1), 0),
    ((0, 5), 0),
    ((0, 64), 0),
    ((0, 129), 0),
    ((0, 1, 2, 3), 0),
    ((0, 3, 70, 71, 100), 0),
    ((0, 1), 1),
    ((0, 7), 33),
    ((0, 65, 66, 131), 31),
    ((0, 2, 100), 96),
    ((0, 230), 37),  # more keys than a block of the backward pass
]
SHAPES = [(4, 2, 16), (3, 1, 32), (9, 3, 64), (2, 2, 128), (4, 4, 80), (4, 2, 24), (2, 1, 8)]


def _operands(layout: Layout, heads: int, n_kv: int, d: int, seed: int = 0) -> dict[str, Any]:
    """q, k, v as views of one packed tensor, the prefix's as views of another: the strides of the real thing."""
    split = [heads, n_kv, n_kv]
    q, k, v = _halves(layout.bounds[-1], (heads + 2 * n_kv) * d, seed=seed).unflatten(1, (-1, d)).split(split, dim=1)
    pk = pv = None
    if layout.prefix:
        shared = _halves(layout.prefix, (heads + 2 * n_kv) * d, seed=seed + 1)
        _, pk, pv = shared.unflatten(1, (-1, d)).split(split, dim=1)
    return {"q": q, "k": k, "v": v, "prefix_k": pk, "prefix_v": pv, "layout": layout}


def _in_floats(operands: dict[str, Any]) -> dict[str, Any]:
    return {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in operands.items()}


WINDOWS = [None, 1, 20, 1000]


@cache
def _exact_attention(
    layout: Layout, heads: int, n_kv: int, d: int, window: int | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """In float32: what comes out, and the gradients of q, k, v and of the prefix's k and v, which begin at 0.5."""
    operands, dout = _in_floats(_operands(layout, heads, n_kv, d)), _halves(layout.bounds[-1], heads, d, seed=5).float()
    exact, _ = PYTORCH.attend(**operands, window=window)
    sums = torch.zeros(2, layout.prefix, n_kv, d) + 0.5
    grads = PYTORCH.attend_backward(
        dout, **operands, out=exact, saved=torch.empty(0), window=window, dprefix_k=sums[0], dprefix_v=sums[1]
    )
    return exact, [*grads, *sums]


@pytest.mark.parametrize(("heads", "n_kv", "d"), SHAPES)
def test_attention(native: NativeKernels, heads: int, n_kv: int, d: int) -> None:
    for (bounds, prefix), window in _cases(LAYOUTS, WINDOWS):
        layout = Layout(bounds, prefix)
        operands = _operands(layout, heads, n_kv, d)
        exact, theirs = _exact_attention(layout, heads, n_kv, d, window)
        out, saved = native.attend(**operands, window=window)
        assert out.dtype == HALVES
        _near(out, exact)
        dout = _halves(bounds[-1], heads, d, seed=5)
        sums = torch.zeros(2, prefix, n_kv, d) + 0.5
        grads = native.attend_backward(
            dout, **operands, out=out, saved=saved, window=window, dprefix_k=sums[0], dprefix_v=sums[1]
        )
        size = max(float(x.abs().max()) for x in theirs[:3])  # a row with one key has dq = dk = 0, in theory
        for a, b in zip((*grads, *sums), theirs, strict=True):
            assert a.isfinite().all()
            if b.numel():
                assert (a.double() - b.double()).abs().max() <= 0.02 * size
                assert (a.double() - b.double()).norm() <= 0.008 * b.double().norm() + 0.003 * size * b.numel() ** 0.5


def test_attention_with_capped_scores_and_another_scale(native: NativeKernels) -> None:
    """Kernels, PyTorch's operations, and PyTorch's autograd over the formula agree."""
    shapes = [(4, 2, 16), (9, 3, 64), (4, 2, 24)]
    for (heads, n_kv, d), scale, soft_cap in _cases(shapes, [None, 0.0625, 1.0], [None, 50.0, 2.0]):
        layout = Layout((0, 65, 66, 131), 31)
        operands, how = _operands(layout, heads, n_kv, d), {"window": 50, "scale": scale, "soft_cap": soft_cap}
        out, saved = native.attend(**operands, **how)
        dout = _halves(131, heads, d, seed=5)
        sums = [torch.zeros(2, 31, n_kv, d) for _ in range(2)]
        ours = native.attend_backward(
            dout, **operands, out=out, saved=saved, dprefix_k=sums[0][0], dprefix_v=sums[0][1], **how
        )
        floats = _in_floats(operands)
        exact, _ = PYTORCH.attend(**floats, **how)
        _near(out, exact, mean=0.005)
        theirs = PYTORCH.attend_backward(
            dout.float(), **floats, out=exact, saved=torch.empty(0), dprefix_k=sums[1][0], dprefix_v=sums[1][1], **how
        )
        leaves = {name: floats[name].clone().requires_grad_() for name in ("q", "k", "v", "prefix_k", "prefix_v")}
        PYTORCH.attend(**leaves, layout=layout, **how)[0].backward(dout.float())
        size = max(float(x.abs().max()) for x in theirs)
        for a, b, leaf in zip((*ours, *sums[0]), (*theirs, *sums[1]), leaves.values(), strict=True):
            assert leaf.grad is not None
            torch.testing.assert_close(b, leaf.grad, rtol=1e-3, atol=1e-5 * size)
            assert (a.double() - b.double()).abs().max() <= 0.02 * size
            assert (a.double() - b.double()).norm() <= 0.008 * b.double().norm() + 0.003 * size * b.numel() ** 0.5
        lengths = torch.tensor([1, 20])
        q, k, v = _halves(2, heads, d, seed=6), _halves(2, 20, n_kv, d, seed=7), _halves(2, 20, n_kv, d, seed=8)
        pk, pv = operands["prefix_k"].contiguous(), operands["prefix_v"].contiguous()
        ours_cached = native.attend_cached(q, pk, pv, k, v, lengths, **how)
        in_floats = [x.float() for x in (q, pk, pv, k, v)]
        _near(ours_cached, PYTORCH.attend_cached(*in_floats, lengths, **how), worst=0.005)
        queries = torch.zeros(20, heads, d)
        queries[-1] = q[1].float()
        full, _ = PYTORCH.attend(queries, *(x[1].float() for x in (k, v)), *in_floats[1:3], Layout((0, 20), 31), **how)
        torch.testing.assert_close(PYTORCH.attend_cached(*in_floats, lengths, **how)[1], full[-1], rtol=1e-4, atol=1e-5)


def test_attention_of_large_scores(native: NativeKernels) -> None:
    """One key takes all the weight; the others' exponentials vanish without a trace of infinity."""
    layout = Layout((0, 40, 75), 20)
    operands = _operands(layout, 4, 2, 16)
    operands["q"] = operands["q"] * 60
    out, saved = native.attend(**operands, window=None)
    exact, _ = PYTORCH.attend(**_in_floats(operands), window=None)
    assert ((out.float() - exact).abs() > 0.1).float().mean() < 0.002
    grads = native.attend_backward(
        _halves(75, 4, 16, seed=3), **operands, out=out, saved=saved, window=None, dprefix_k=None, dprefix_v=None
    )
    assert all(grad.isfinite().all() for grad in grads)


def test_attention_repeats_bit_for_bit(native: NativeKernels) -> None:
    for (threads,) in _cases([1, 2]):
        layout = Layout((0, 50, 90, 131), 37)
        operands = _operands(layout, 9, 3, 64)
        dout = _halves(131, 9, 64, seed=3)
        results = []
        torch.set_num_threads(threads)
        try:
            for _ in range(3):
                out, saved = native.attend(**operands, window=50)
                dk, dv = torch.zeros(37, 3, 64), torch.zeros(37, 3, 64)
                grads = native.attend_backward(
                    dout, **operands, out=out, saved=saved, window=50, dprefix_k=dk, dprefix_v=dv
                )
                results.append([out, *grads, dk, dv])
        finally:
            torch.set_num_threads(1)
        for again in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


def test_attention_of_heads_that_threads_share(native: NativeKernels) -> None:
    """Where heads cannot be shared out evenly, the last are cut into parts: to the same results."""
    for ((heads, n_kv),) in _cases([(9, 3), (3, 1), (8, 2), (7, 7)]):
        layout = Layout((0, 300, 305, 480), 37)
        operands = _operands(layout, heads, n_kv, 32)
        dout = _halves(480, heads, 32, seed=3)
        results = {}
        try:
            for threads in (1, 2, 3, 4, 5, 12):
                torch.set_num_threads(threads)
                out, saved = native.attend(**operands, window=None)
                dk, dv = torch.zeros(37, n_kv, 32), torch.zeros(37, n_kv, 32)
                grads = native.attend_backward(
                    dout, **operands, out=out, saved=saved, window=None, dprefix_k=dk, dprefix_v=dv
                )
                results[threads] = [out, *grads, dk, dv]
        finally:
            torch.set_num_threads(1)
        for shared in results.values():
            assert torch.equal(shared[0], results[1][0])
            for a, b in zip(shared[1:], results[1][1:], strict=True):
                assert (a.double() - b.double()).norm() <= 0.003 * b.double().norm()


def test_cached_attention(lanes: NativeKernels) -> None:
    for prefix, (heads, n_kv, d), window in _cases([0, 1, 45], SHAPES, [None, 1, 10, 50]):
        lengths = torch.tensor([1, 7, 30, 12])
        q = _halves(4, (heads + 2 * n_kv) * d).unflatten(1, (-1, d))[:, :heads]
        k, v = _halves(4, 33, n_kv, d, seed=1), _halves(4, 33, n_kv, d, seed=2)
        pk, pv = (_halves(prefix, n_kv, d, seed=s) if prefix else None for s in (3, 4))
        floats = [None if x is None else x.float() for x in (q, pk, pv, k, v)]
        exact = PYTORCH.attend_cached(*floats, lengths, window)  # type: ignore[arg-type]
        _near(lanes.attend_cached(q, pk, pv, k, v, lengths, window), exact, worst=0.005)
        # and both are the last row of the attention that training uses
        for row, n in enumerate(lengths.tolist()):
            queries = torch.zeros(n, heads, d)
            queries[-1] = q[row].float()
            layout = Layout((0, n), prefix)
            full, _ = PYTORCH.attend(
                queries, k[row, :n].float(), v[row, :n].float(), floats[1], floats[2], layout, window
            )
            torch.testing.assert_close(exact[row], full[-1], rtol=1e-4, atol=1e-5)


def test_cached_attention_of_a_row_does_not_depend_on_the_others(lanes: NativeKernels) -> None:
    """Many rows against a prefix are computed in blocks; each has the same bits alone."""
    for (heads, n_kv, d), window in _cases([(9, 3, 64), (8, 8, 128), (14, 2, 32)], [None, 60]):
        b, prefix = 45, 70
        lengths = torch.arange(b) % 31 + 1
        q, k, v = _halves(b, heads, d), _halves(b, 33, n_kv, d, seed=1), _halves(b, 33, n_kv, d, seed=2)
        pk, pv = _halves(prefix, n_kv, d, seed=3), _halves(prefix, n_kv, d, seed=4)
        together = lanes.attend_cached(q, pk, pv, k, v, lengths, window)
        floats = [x.float() for x in (q, pk, pv, k, v)]
        _near(together, PYTORCH.attend_cached(*floats, lengths, window), worst=0.005)
        for row in (0, 17, 44):
            one = slice(row, row + 1)
            alone = lanes.attend_cached(q[one], pk, pv, k[one], v[one], lengths[one], window)
            assert torch.equal(alone, together[one])


# --- all together -----------------------------------------------------------------------------------------------------


ARCHITECTURES: list[tuple[str, tuple[tuple[str, int], ...]]] = [
    ("llama", ()),
    ("mistral", (("sliding_window", 12),)),
    ("qwen3", ()),
    ("qwen2", ()),
    # heads of 24 numbers, 192 in all: a multiple of nf4's block
    ("llama", (("head_dim", 24), ("num_attention_heads", 8), ("num_key_value_heads", 8))),
]


@cache
def _whole(
    name: str | int, precision: str, architecture: str, overrides: tuple[tuple[str, int], ...]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of a step with the kernels of that name, or the twins with that many levels."""
    twins = TorchKernels()
    if isinstance(name, int):
        twins.qmax = name
    return _step(twins if isinstance(name, int) else _native(name), precision, architecture, overrides)


def _step(
    used: TorchKernels, precision: str, architecture: str, overrides: tuple[tuple[str, int], ...]
) -> tuple[float, dict[str, torch.Tensor]]:
    choose.use(used)
    try:
        model = tiny_lora(architecture, precision, intermediate_size=128, **dict(overrides))
        return gradient(model, [example(4 + i, 9, seed=i, prefix=range(20)) for i in range(3)], [[0, 1], [2]])
    finally:
        choose.use(None)


# bf16 has attention and small operations only
WHOLE = [(precision, name) for precision in ("int8", "nf4") for name in NAMES] + [("bf16", name) for name in BY_LANES]


@pytest.mark.parametrize(("precision", "name"), WHOLE)
def test_a_whole_gradient(precision: str, name: str) -> None:
    """With either set of kernels the same step; dropout included, since masks are identical."""
    for ((architecture, overrides),) in _cases(ARCHITECTURES):
        ours = _whole(name, precision, architecture, overrides)
        theirs = _whole(_native(name).qmax, precision, architecture, overrides)
        assert ours[0] == pytest.approx(theirs[0], rel=0.01)
        assert cosine(ours[1], theirs[1]) > (0.99 if precision == "int8" else 0.999)


@pytest.mark.skipif(not {"amx", "avx512bf16"} <= {*NAMES}, reason="this CPU has no AMX")
@pytest.mark.parametrize("precision", ["int8", "nf4", "bf16"])
@pytest.mark.parametrize(("architecture", "overrides"), ARCHITECTURES[:1] + ARCHITECTURES[-1:])
def test_amx_has_the_bits_of_avx512bf16_but_for_attention(
    precision: str, architecture: str, overrides: tuple[tuple[str, int], ...]
) -> None:
    """Sums of whole numbers are exact in tiles and in lanes; everything else is the same code."""
    other = _native("avx512bf16")
    mixed = copy(_native("amx"))
    mixed.attend, mixed.attend_backward = other.attend, other.attend_backward  # type: ignore[method-assign]
    ours, theirs = (
        _step(mixed, precision, architecture, overrides),
        _whole(other.name, precision, architecture, overrides),
    )
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert all(torch.equal(ours[1][key], theirs[1][key]) for key in ours[1])


def test_the_order_of_instruction_sets_depends_on_the_vendor() -> None:
    """Intel's product of bf16 pairs is slower than that of int16 pairs."""
    features = instruction_set("avx512bf16").needs
    assert [row.name for row in usable(features, "x86_64", "AuthenticAMD")] == ["avx512bf16", "avx512", "avx2"]
    assert [row.name for row in usable(features, "x86_64", "GenuineIntel")] == ["avx512", "avx2", "avx512bf16"]


SAY = "from rescoldo.engine.kernels.choose import kernels; print(kernels().name)"


def _name(**environment: str) -> subprocess.CompletedProcess[str]:
    """What another process says that it uses."""
    full = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", SAY], env=full, capture_output=True, text=True, check=True)


def test_without_a_compiler_pytorch_is_used_and_said_so(tmp_path: Path) -> None:
    """On standard error: standard output may be a document for programs."""
    done = _name(XDG_CACHE_HOME=str(tmp_path), CC="/nonexistent/cc", RESCOLDO_KERNELS="")
    assert "note: slower PyTorch kernels in use: /nonexistent/cc does not run" in done.stderr
    assert done.stdout == "pytorch\n"


@pytest.mark.skipif(not NAMES or not shutil.which("gcc"), reason="no instruction set, or no gcc here")
def test_without_a_compiler_what_was_built_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these sources only, and the newest."""
    compiler, isa, folder = tmp_path / "cc", instruction_set(NAMES[0]), tmp_path / "kernels"
    built = []
    for version in ("1", "2"):
        compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit\nexit 1\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        monkeypatch.setattr(build_module, "build", lambda target, row, out, text=version: _write(out, text))
        built.append(library(isa, folder))
        os.utime(built[-1], (int(version), int(version)))
    assert [path.read_text() for path in built] == ["1", "2"]
    monkeypatch.setenv("CC", "/nonexistent/cc")
    assert library(isa, folder) == built[1]
    monkeypatch.setattr(build_module, "_FLAGS", (*build_module._FLAGS, "-DOTHER"))
    with pytest.raises(BuildError, match="/nonexistent/cc does not run"):
        library(isa, folder)


def _write(out: Path, text: str) -> None:
    out.parent.mkdir(exist_ok=True)
    out.write_text(text)


def test_the_kernels_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for name in ("torch", *NAMES):
            monkeypatch.setenv("RESCOLDO_KERNELS", name)
            choose.use(None)
            assert choose.kernels().name == ("pytorch" if name == "torch" else name)
        monkeypatch.setenv("RESCOLDO_KERNELS", "mmx")
        choose.use(None)
        with pytest.raises(RescoldoError, match="invalid value 'mmx': expected torch, "):
            choose.kernels()
        monkeypatch.setenv("RESCOLDO_KERNELS", "avx2")
        monkeypatch.setattr(cpu, "instructions", lambda: frozenset({"sse2"}))
        with pytest.raises(RescoldoError, match="does not have the instructions that 'avx2' needs"):
            choose.kernels()
    finally:
        choose.use(None)


class _Wrong(TorchKernels):
    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        return super().silu_mul(gate_up) * 1.1


class _Illegal(TorchKernels):
    def int8_input(self, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGILL)


class _Raising(TorchKernels):
    def attend(self, *args: Any, **kwargs: Any) -> Any:
        raise MemoryError("none left")


@pytest.mark.parametrize(
    ("made", "wrong"),
    [
        (TorchKernels, None),
        (_Wrong, "silu_mul disagrees with PyTorch"),
        (_Illegal, "ended by SIGILL"),
        (_Raising, "MemoryError: none left"),
    ],
)
def test_the_self_test_finds(made: type[TorchKernels], wrong: str | None) -> None:
    assert selftest.failure(made) == wrong


def test_the_self_test_passes_and_is_remembered(native: NativeKernels, tmp_path: Path) -> None:
    library = tmp_path / "some.so"
    library.write_bytes(b"one")
    assert selftest.remembered(library, lambda: native, tmp_path) is None
    assert selftest.remembered(library, _Wrong, tmp_path) is None  # not tried again
    library.write_bytes(b"two")
    for made in (_Wrong, TorchKernels):
        assert selftest.remembered(library, made, tmp_path) == "silu_mul disagrees with PyTorch"


@pytest.mark.skipif(len(NAMES) < 2, reason="one instruction set")
def test_kernels_that_fail_are_passed_over(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def remembered(library: Path, make: object, folder: Path, name: str) -> str | None:
        return "ended by SIGILL" if library.name.startswith(NAMES[0] + "-") else None

    monkeypatch.setattr(choose, "remembered", remembered)
    monkeypatch.delenv("RESCOLDO_KERNELS", raising=False)
    try:
        choose.use(None)
        assert choose.kernels().name == NAMES[1]
        assert choose.choice().passed_over == {NAMES[0]: "they fail their self-test (ended by SIGILL)"}
        captured = capsys.readouterr()
        assert f"warning: {NAMES[1]} kernels in use, not {NAMES[0]}: they fail their self-test" in captured.err
        assert not captured.out
    finally:
        choose.use(None)


def test_a_forked_child_has_threads_again(lanes: NativeKernels) -> None:
    """The pool's threads are not inherited; a child makes its own."""
    x = _halves(400, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        expected = lanes.silu_mul(x)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            same = lanes.silu_mul(x).view(torch.int16).tolist() == expected.view(torch.int16).tolist()
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(lanes.silu_mul(x), expected)
    finally:
        torch.set_num_threads(before)


def test_several_threads_of_a_program_may_call_at_once(lanes: NativeKernels) -> None:
    x = [_halves(200, 512, seed=i) for i in range(4)]
    expected = [lanes.silu_mul(one) for one in x]

    def work(i: int) -> bool:
        torch.set_num_threads(2)
        return all(torch.equal(lanes.silu_mul(x[i]), expected[i]) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    torch.set_num_threads(1)


@pytest.mark.slow
def test_a_build_in_the_c_locale(tmp_path: Path) -> None:
    """The sources are UTF-8 whatever the locale says."""
    if NAMES:
        done = _name(XDG_CACHE_HOME=str(tmp_path), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        assert done.stdout.split()[-1] in NAMES


def test_sources_and_compilers_are_read_as_utf8_in_the_c_locale(tmp_path: Path) -> None:
    """The same without a compiler's time: one that writes an empty library, and has a name in UTF-8."""
    fake = tmp_path / "cc"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Übersetzer 1" && exit\n'
        'while [ "$1" != -o ]; do shift; done\n: > "$2"\n',
        encoding="utf-8",
    )
    fake.chmod(0o755)
    say = (
        "import pathlib, sys; from rescoldo.engine.kernels.build import INSTRUCTION_SETS, library; "
        "print(library(INSTRUCTION_SETS[0], pathlib.Path(sys.argv[1])).name)"
    )
    environment = {**os.environ, "CC": str(fake), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", say, str(tmp_path / "made")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{INSTRUCTION_SETS[0].name}-")
    assert (tmp_path / "made" / done.stdout.strip()).exists()


def test_structures_are_compared_with_the_header(native: NativeKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure that Python mirrors wrongly is found when the library is loaded."""

    class Wrong(native_module._Mask):
        _fields_ = (("one_more", ctypes.c_int64),)

    monkeypatch.setattr(native_module, "_STRUCTURES", (Wrong, *native_module._STRUCTURES[1:]))
    with pytest.raises(BuildError, match=r"another kernels\.h"):
        NativeKernels(native.name)


def test_intrinsics_stay_in_the_headers_of_their_instruction_set() -> None:
    for path in (*C.glob("*.c"), *C.glob("*.h")):
        found = re.findall(r"\b_mm\w*\(|\b__m\d+\w*|\bv\w+q_[sfu]\d+\b|__asm__", path.read_text(encoding="utf-8"))
        assert not found or (path.name, found) == ("threads.c", ["__asm__"]), (path.name, found)  # its pause


def test_every_instruction_set_has_a_header() -> None:
    assert {row.header for row in INSTRUCTION_SETS} <= {path.name for path in (C / "isa").glob("*.h")}
    assert len({row.name for row in INSTRUCTION_SETS}) == len(INSTRUCTION_SETS)


def test_a_failing_compiler_is_reported_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo fake 1.0 && exit 0\necho 'no such flag' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match="no such flag"):
        NativeKernels("avx2")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_build_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler says that a file does not exist, and another compiler would not help."""
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'Fatal error: attention.o: No such file or directory' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    monkeypatch.setattr(build_module, "_free", lambda folder: 4096)
    with pytest.raises(BuildError, match="the disk is full") as caught:
        build_module.build(None, INSTRUCTION_SETS[0], tmp_path / "made" / "a.so")
    assert "XDG_CACHE_HOME" in caught.value.remedy
