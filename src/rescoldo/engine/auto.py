"""The choice of a precision if the user makes none, by measuring this machine's products and its free memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.int8 import group_size
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.memory import HEADROOM, memory_need
from rescoldo.engine.precisions import PRECISIONS, fitting
from rescoldo.engine.types import LoraConfig
from rescoldo.files import cache_root, write_json
from rescoldo.system import cpu
from rescoldo.system.memory import memory_available
from rescoldo.units import gigabytes

_ROWS = 512  # tokens of a measured product
_SECONDS = 0.2  # time for each precision
_TOKENS = 1024  # tokens of a training pass, for its memory
PRODUCTS = ("fp32", "bf16", "int8")  # the measured products


@dataclass(frozen=True)
class Choice:
    """A precision, and the reason for people."""

    precision: str
    reason: str


def product_rates(into: int, out: int) -> dict[str, float]:
    """Operations per second of this machine's products (512, into)·(into, out), by PRODUCTS; cached. bf16 is computed
    as in the engine: through float32 if the CPU would emulate it."""
    path = cache_root() / "products.json"
    identity = (
        f"{cpu.identity()}|{torch.__version__}|{torch.get_num_threads()}|{into}x{out}|{cpu.fast_bf16()}"
        f"|{kernels().name}|{kernels().qmax}"
    )
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    try:
        cached = json.loads(path.read_bytes())
        rates = cached[key]
        if all(isinstance(rates[name], float) and rates[name] > 0 for name in PRODUCTS):
            return {name: rates[name] for name in PRODUCTS}
    except (OSError, ValueError, KeyError, TypeError):
        cached = {}
    rates = measure_products(_ROWS, into, out, _SECONDS)
    with contextlib.suppress(OSError):  # the cache only saves a second
        write_json(path, {**(cached if isinstance(cached, dict) else {}), key: rates})
    return rates


def measure_products(rows: int, into: int, out: int, seconds: float) -> dict[str, float]:
    """The best rate in operations per second of bare products (rows, into)·(into, out), with `seconds` for each
    precision.
    int8: this engine's or PyTorch's, whichever is faster; PyTorch's is not measured on AVX2, where it is slow."""
    x, w = torch.randn(rows, into), torch.randn(out, into)
    xb, wb, xi, wi = x.bfloat16(), w.bfloat16(), (20 * x).to(torch.int8), (20 * w).to(torch.int8)
    work = 2.0 * rows * into * out
    op = kernels()
    panels, scale = op.int8_pack(wb, torch.ones(into))
    quantized, z = op.int8_input(xb, None, group_size(into), [], None, 0, None)
    assert quantized is not None

    def bf16() -> object:
        return xb @ wb.T if cpu.fast_bf16() else (xb.float() @ wb.float().T).bfloat16()

    int8 = []
    if op.name != "pytorch":
        int8.append(
            _best(lambda: op.int8_product(quantized, panels, out, scale, None, z, None, None, backward=False), seconds)
        )
    if op.qmax == 127:
        int8.append(_best(lambda: torch._int_mm(xi, wi.T), seconds))
    return {
        "fp32": work / _best(lambda: x @ w.T, seconds),
        "bf16": work / _best(bf16, seconds),
        "int8": work / min(int8),
    }


def _best(run: Callable[[], object], seconds: float) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def choose_precision(
    config: DecoderConfig,
    rates: dict[str, float] | None = None,
    free: int | None = None,
    *,
    stored: int | None = None,
    calibrated: bool = True,
) -> Choice:
    """The fastest precision whose memory fits.

    Args:
        config: the model's shapes.
        rates: as product_rates returns them; measured where left out.
        free: bytes to fit into; memory_available() where left out.
        stored: as weight_bytes takes it.
        calibrated: whether input ranges are known or can be measured; without, neither int8 nor nf4 is chosen.
    """
    rates = rates or product_rates(min(config.hidden_size, 4096), min(config.intermediate_size, 4096))
    free = memory_available() if free is None else free
    possible = fitting(config, calibrated=calibrated)
    seconds = {p: PRECISIONS[p].overhead / rates[PRECISIONS[p].product] for p in possible}
    need = {p: memory_need(config, p, LoraConfig(), _TOKENS, stored).full for p in possible}
    small = [p for p in possible if need[p] <= HEADROOM * free]
    measured = ", ".join(f"{p} {rates[p] / 1e9:.0f}" for p in PRODUCTS)
    measured = f"products here: {measured} G operations/s"
    if not small:
        smallest = min(possible, key=lambda p: need[p])
        short = f"needs about {gigabytes(need[smallest])}, {gigabytes(free)} are free"
        return Choice(smallest, f"the smallest; even it {short}; {measured}")
    best = min(small, key=lambda p: seconds[p])
    size = f"needs about {gigabytes(need[best])} of {gigabytes(free)} free"
    return Choice(best, f"the fastest that fits: {measured}; {size}")
