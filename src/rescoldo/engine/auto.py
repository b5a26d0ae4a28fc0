"""Which precision to train in, where the user leaves it to us: by a measurement of this machine and its free memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.int8 import group_size
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.types import CALIBRATED
from rescoldo.files import cache_root, write_json
from rescoldo.system import cpu
from rescoldo.system.memory import memory_available
from rescoldo.units import gigabytes

_ROWS = 512  # tokens in a measured product
_SECONDS = 0.2  # spent on each precision
_TOKENS = 1024  # tokens whose activations a training pass holds
_PROCESS = 600_000_000  # bytes: Python, torch and what they load
_HEADROOM = 0.9  # of the free memory
# What a step takes beside its products, estimated: quantizing and scaling for int8, and unpacking for nf4.
_OVERHEAD = {"fp32": 1.0, "bf16": 1.0, "int8": 1.08, "nf4": 1.15}
SMALL = 1 << 30  # weights of linears; blocks of smaller models are unpacked to int8 once
_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.02, "nf4": 0.53125}  # per weight, scales included


@dataclass(frozen=True)
class Choice:
    """A precision and, in words, why."""

    precision: str
    reason: str


def stays_stored(config: DecoderConfig, precision: str) -> bool:
    """Whether linears that the file has in blocks are kept so in this precision."""
    return precision == "nf4" or (precision == "int8" and linear_weights(config) > SMALL)


def linear_weights(config: DecoderConfig) -> int:
    """How many weights all layers' linears have."""
    return config.n_layers * sum(math.prod(config.linear_shape(name)) for name in config.linears)


def weight_bytes(config: DecoderConfig, precision: str, stored: int | None = None) -> int:
    """Bytes of the frozen model in this precision, embeddings included.

    `stored`: bytes of the linears' blocks in the file, if it has such.
    """
    linears = linear_weights(config) * _BYTES[precision]
    if stored is not None and stays_stored(config, precision):
        linears = stored
    wide = 4 if precision == "fp32" else 2
    return int(linears + config.vocab_size * config.hidden_size * wide * (1 if config.tied_embeddings else 2))


def memory_needed(config: DecoderConfig, precision: str, stored: int | None = None) -> float:
    """Bytes that training in this precision takes at its peak, roughly: weights, one example's activations, process.
    `stored` as weight_bytes takes it."""
    layer = 2 * linear_weights(config) / config.n_layers if precision in CALIBRATED else 0.0  # that is being converted
    activations = config.n_layers * kept_bytes(config, 4 if precision == "fp32" else 2, _TOKENS)
    return weight_bytes(config, precision, stored) + activations + layer + _PROCESS


def kept_bytes(config: DecoderConfig, element: int, tokens: int) -> int:
    """Bytes that one layer keeps for its backward pass: normed inputs, q, k, v, attention's output, gate and up."""
    kept = 2 * config.hidden_size + 2 * config.intermediate_size + 2 * config.n_heads * config.head_dim
    return tokens * element * (kept + 2 * config.n_kv_heads * config.head_dim)


def layers_to_keep(config: DecoderConfig, element: int, tokens: int, free: int | None = None) -> int:
    """For how many layers the activations of `tokens` rows fit into the free memory; the others are recomputed.

    Args:
        config: the model's shapes.
        element: bytes of an activation's element.
        tokens: rows of the pass.
        free: bytes to fit into; memory_available() where left out.
    """
    free = memory_available() if free is None else free
    layer = kept_bytes(config, element, tokens)
    inputs = config.n_layers * tokens * config.hidden_size * 2  # of every second layer that is recomputed
    return max(0, min(config.n_layers, int((_HEADROOM * free - inputs - 5 * layer) // layer)))


def product_of(precision: str) -> str:
    """Which of the measured products a precision's linears use."""
    return "int8" if precision in CALIBRATED else precision


def product_rates(into: int, out: int) -> dict[str, float]:
    """Operations a second of this machine's products (512, into)·(into, out) in fp32, bf16 and int8; cached. bf16 as
    the engine does it: by way of float32 where the CPU would emulate it."""
    path = cache_root() / "products.json"
    identity = (
        f"{cpu.identity()}|{torch.__version__}|{torch.get_num_threads()}|{into}x{out}|{cpu.fast_bf16()}"
        f"|{kernels().name}|{kernels().qmax}"
    )
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    try:
        cached = json.loads(path.read_bytes())
        rates = cached[key]
        if all(isinstance(rates[name], float) and rates[name] > 0 for name in ("fp32", "bf16", "int8")):
            return {name: rates[name] for name in ("fp32", "bf16", "int8")}
    except (OSError, ValueError, KeyError, TypeError):
        cached = {}
    rates = measure_products(_ROWS, into, out, _SECONDS)
    with contextlib.suppress(OSError):  # the cache only saves a second
        write_json(path, {**(cached if isinstance(cached, dict) else {}), key: rates})
    return rates


def measure_products(rows: int, into: int, out: int, seconds: float) -> dict[str, float]:
    """Best rate, operations a second, of bare products (rows, into)·(into, out); `seconds` are spent on each precision.
    int8: this engine's or the library's, whichever is faster; the library has none worth measuring on AVX2."""
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
    allowed = [p for p in _BYTES if p != "nf4" or all(config.linear_shape(n)[1] % 64 == 0 for n in config.linears)]
    allowed = [p for p in allowed if calibrated or p not in CALIBRATED]
    seconds = {p: _OVERHEAD[p] / rates[product_of(p)] for p in allowed}
    need = {p: memory_needed(config, p, stored) for p in allowed}
    fitting = [p for p in allowed if need[p] <= _HEADROOM * free]
    measured = ", ".join(f"{p} {rates[p] / 1e9:.0f}" for p in ("fp32", "bf16", "int8"))
    measured = f"products here: {measured} G operations/s"
    if not fitting:
        smallest = min(allowed, key=lambda p: need[p])
        short = f"needs about {gigabytes(need[smallest])}, {gigabytes(free)} are free"
        return Choice(smallest, f"the smallest; even it {short}; {measured}")
    best = min(fitting, key=lambda p: seconds[p])
    size = f"needs about {gigabytes(need[best])} of {gigabytes(free)} free"
    return Choice(best, f"the fastest that fits: {measured}; {size}")
