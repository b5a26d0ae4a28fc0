"""The kernels of the C files in c/, built with the compiler at hand on first use, cached, run by torch's own
OpenMP threads.

The shared library links no OpenMP runtime of its own: it finds the one torch has loaded, so that both use one pool of
threads. Where there is no compiler, `build` says why, and the PyTorch twins are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import KINDS, Blocks, Stored
from rescoldo.engine.kernels.choose import Twins
from rescoldo.engine.kernels.ops import Dropout
from rescoldo.engine.kernels.ops_int8 import Apart, Quantized, Segment, Side, levels_type, padded
from rescoldo.files import cache_root
from rescoldo.system import cpu

_C = Path(__file__).with_name("c")
_SOURCES = [_C / name for name in ("kernels.c", "attention.c", "blocks.c", "int8.c")]
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC"]
# a decoded weight is the same number everywhere: no product and sum in one rounding
_MORE = {"blocks.c": ["-ffp-contract=off"]}
ELSEWHERE = "export XDG_CACHE_HOME=/a/folder/that/can/be/written (on a file system that is not mounted noexec)"
_FLOATS, _HALVES = torch.float32, torch.bfloat16


class BuildError(Exception):
    """Why there are no native kernels here, and what to do about it."""

    def __init__(self, why: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(why)


def build(*extra: str) -> Path:
    """The shared library for these sources, compiler and CPU, compiled if it is not cached yet; `extra` compiler flags.

    Raises:
        BuildError: no compiler, or it failed.
    """
    flags = [*_FLAGS, *extra]
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if not compiler:
        raise BuildError("no C compiler (gcc) on this machine", "apt install gcc")
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} does not run: {error}", "apt install gcc") from error
    texts = [
        path.read_text(encoding="utf-8") for path in (*_SOURCES, *(_C / n for n in ("common.h", "simd.h", "blocks.h")))
    ]
    identity = "\n".join([version, cpu.identity(), *flags, repr(_MORE), *texts])
    library = cache_root(loadable=True) / "kernels" / f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            for command in (
                *(
                    [compiler, *flags, *_MORE.get(path.name, []), "-c", str(path), "-o", f"{scratch}/{path.stem}.o"]
                    for path in _SOURCES
                ),
                [
                    compiler,
                    "-shared",
                    *(f"{scratch}/{path.stem}.o" for path in _SOURCES),
                    "-o",
                    f"{scratch}/k.so",
                    "-lm",
                ],
            ):
                subprocess.run(
                    command, capture_output=True, encoding="utf-8", errors="replace", timeout=300, check=True
                )
            os.replace(f"{scratch}/k.so", library)
    except subprocess.CalledProcessError as error:
        raise BuildError(
            f"{compiler} failed: {str(error.stderr).strip().splitlines()[-1:]}", "apt install gcc"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"building in {library.parent} failed: {error}", ELSEWHERE) from error
    return library


def _pointer(x: torch.Tensor | None) -> ctypes.c_void_p:
    """The tensor's address. It does not keep the tensor alive: never pass a temporary (`x.contiguous()`)."""
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


def _int(x: int) -> ctypes.c_int64:
    return ctypes.c_int64(x)


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "H", "K", "d", "P", "n", "qs", "ks", "ps", "window")),
        *((name, ctypes.c_void_p) for name in ("bounds", "q", "k", "v", "pk", "pv")),
    )


class _Mask(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p), ("key", ctypes.c_int64), ("threshold", ctypes.c_int64), ("scale", ctypes.c_float),
    )  # fmt: skip


class _Segment(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_int64), ("end", ctypes.c_int64), ("b", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("n", "np", "at")),
    )  # fmt: skip


class _Int8Input(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "K", "Kp", "group", "groups")),
        *((name, ctypes.c_void_p) for name in ("x", "columns", "q", "scale", "sum")),
        ("segments", ctypes.c_int64), ("Z", ctypes.c_int64), ("segment", ctypes.c_void_p), ("z", ctypes.c_void_p),
        ("n_apart", ctypes.c_int64), ("apart_at", ctypes.c_int64), ("apart", ctypes.c_void_p), ("mask", _Mask),
    )  # fmt: skip


class _Int8Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "K", "N", "group", "groups")),
        *((name, ctypes.c_void_p) for name in ("q", "scale", "sum", "w", "stored")),
        ("backward", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("columns", "z", "own", "common")),
        *((name, ctypes.c_int64) for name in ("Z", "n_own", "n_common", "common_at")),
        ("at", ctypes.c_void_p), ("mask", _Mask), ("bias", ctypes.c_void_p), ("y", ctypes.c_void_p),
    )  # fmt: skip


def _address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class _Blocks(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "rows", "row_bytes")),
        *((name, ctypes.c_void_p) for name in ("data", "order", "scales")),
    )


class _Stored(ctypes.Structure):
    """Keeps nothing alive but its own table: the tensors are the caller's."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("parts", "N", "K")),
        *((name, ctypes.c_void_p) for name in ("part", "columns", "inverse")),
    )
    N: int
    K: int

    def __init__(
        self, parts: Sequence[Blocks], columns: torch.Tensor | None = None, inverse: torch.Tensor | None = None
    ) -> None:
        self.table = (_Blocks * len(parts))(
            *(
                _Blocks(
                    KINDS.index(b.kind), b.shape[0], b.data.shape[1],
                    b.data.data_ptr(), _address(b.order), _address(b.scales),
                )
                for b in parts
            )
        )  # fmt: skip
        rows, into = sum(b.shape[0] for b in parts), parts[0].shape[1]
        super().__init__(len(parts), rows, into, ctypes.addressof(self.table), _address(columns), _address(inverse))


def _mask(how: Dropout | None) -> _Mask:
    if how is None:
        return _Mask(None, 0, 0, 0.0)
    return _Mask(how.rows.data_ptr(), how.key, how.threshold, how.scale)


class Native(Twins):
    """The same functions as the twins', in C for bfloat16; float32 tensors go to the twins."""

    name = "native"

    def __init__(self, *flags: str) -> None:
        """Build with more compiler flags: `-DRESCOLDO_INT16_ATTENTION` does attention's products in int16,
        `-DRESCOLDO_AVX2` everything as on a CPU without AVX-512."""
        try:
            self._c = ctypes.CDLL(str(build(*flags)))
        except OSError as error:
            raise BuildError(f"the built kernels do not load: {error}", ELSEWHERE) from error
        self._has_attention = bool(self._c.has_attention())
        self._has_int8 = bool(self._c.has_int8())
        self.levels = int(self._c.int8_levels())
        self._has_blocks = bool(self._c.has_blocks())  # wherever there is int8

    def rms_norm(
        self, h: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if weight.dtype != _HALVES:
            return super().rms_norm(h, weight, eps)
        t, d = h.shape
        x, normed, rstd = torch.empty(t, d, dtype=_HALVES), torch.empty(t, d, dtype=_HALVES), torch.empty(t)
        h = h.contiguous()
        self._c.rms_norm(
            _pointer(h), _pointer(weight), _int(t), _int(d), ctypes.c_float(eps),
            _pointer(x), _pointer(normed), _pointer(rstd),
        )  # fmt: skip
        return x, normed, rstd

    def rms_norm_backward(
        self, dy: torch.Tensor, normed: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, dh: torch.Tensor
    ) -> None:
        if dy.dtype != _HALVES or not dh.is_contiguous():
            super().rms_norm_backward(dy, normed, rstd, weight, dh)
            return
        dy, normed, rstd = dy.contiguous(), normed.contiguous(), rstd.contiguous()
        self._c.rms_norm_backward(
            _pointer(dy), _pointer(normed), _pointer(rstd), _pointer(weight), _int(dy.shape[0]), _int(dy.shape[1]),
            _pointer(dh),
        )  # fmt: skip

    def add_(self, h: torch.Tensor, y: torch.Tensor) -> None:
        if y.dtype != _HALVES or not y.is_contiguous():
            super().add_(h, y)
            return
        self._c.add_rows(_pointer(h), _pointer(y), _int(h.numel()))

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        if gate_up.dtype != _HALVES:
            return super().silu_mul(gate_up)
        t, f = gate_up.shape[0], gate_up.shape[1] // 2
        a = torch.empty(t, f, dtype=_HALVES)
        gate_up = gate_up.contiguous()
        self._c.silu_mul(_pointer(gate_up), _int(t), _int(f), _pointer(a))
        return a

    def silu_mul_backward_(self, gate_up: torch.Tensor, da: torch.Tensor) -> None:
        if gate_up.dtype != _HALVES or not gate_up.is_contiguous():
            super().silu_mul_backward_(gate_up, da)
            return
        da = da.contiguous()
        t, f = da.shape
        self._c.silu_mul_backward(_pointer(gate_up), _pointer(da), _int(t), _int(f))

    def rotate_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float = 1.0) -> None:
        if x.dtype != _HALVES or x.stride(2) != 1 or x.stride(1) != x.shape[2]:
            super().rotate_(x, cos, sin, sign)
            return
        t, heads, d = x.shape
        self._c.rotate(
            _pointer(x), _pointer(cos), _pointer(sin), _int(t), _int(heads), _int(d), _int(x.stride(0)),
            ctypes.c_float(sign),
        )  # fmt: skip

    def _dropout(self, x: torch.Tensor, how: Dropout, add: bool, y: torch.Tensor) -> None:
        x = x.contiguous()
        self._c.dropout(
            _pointer(x), _pointer(how.rows), ctypes.c_uint32(how.key), ctypes.c_int(how.threshold),
            ctypes.c_float(how.scale), _int(x.shape[0]), _int(x.shape[1]), ctypes.c_int(add), _pointer(y),
        )  # fmt: skip

    def dropout(self, x: torch.Tensor, how: Dropout) -> torch.Tensor:
        if x.dtype != _HALVES:
            return super().dropout(x, how)
        y = torch.empty(x.shape, dtype=_HALVES)
        self._dropout(x, how, False, y)
        return y

    def dropout_backward(self, dx: torch.Tensor, dropped: torch.Tensor, how: Dropout | None) -> None:
        if how is None or dx.dtype != _HALVES:
            super().dropout_backward(dx, dropped, how)
            return
        self._dropout(dropped, how, True, dx)

    def int8_pack(self, weight: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._has_int8 or weight.dtype != _HALVES:
            return super().int8_pack(weight, columns)
        weight, (n, k) = weight.contiguous(), weight.shape
        panels, scale = torch.empty(padded(n) // 16, padded(k) // 4, 16, 4, dtype=torch.uint8), torch.empty(n)
        if self._c.int8_pack(
            _pointer(weight), _pointer(columns), _int(n), _int(k), _pointer(panels), _pointer(scale)
        ):  # fmt: skip
            raise MemoryError("no memory left for packing a weight")
        return panels, scale

    def int8_input(
        self,
        x: torch.Tensor,
        columns: torch.Tensor | None,
        group: int | None,
        segments: Sequence[Segment],
        apart: Apart | None,
        width: int,
        mask: Dropout | None,
    ) -> tuple[Quantized | None, torch.Tensor]:
        if not self._has_int8:
            return super().int8_input(x, columns, group, segments, apart, width, mask)
        x = x.contiguous()
        t, k = x.shape
        kp = padded(k)
        groups = -(-kp // group) if group else 0
        rows: Quantized | None = None
        if group:
            q, scale = torch.empty(t, kp, dtype=levels_type(self.levels)), torch.empty(t, groups)
            rows = Quantized(q, scale, torch.empty(t, groups, dtype=torch.int32) if q.itemsize == 1 else None, group)
        z = torch.empty(t, width)
        table = (_Segment * max(1, len(segments)))(
            *(_Segment(s.start, s.end, s.b.data_ptr(), s.n, s.b.shape[1], s.at) for s in segments)
        )
        how = _Int8Input(
            t, k, kp, group or 0, groups, x.data_ptr(), _address(columns),
            *([rows.q.data_ptr(), rows.scale.data_ptr(), _address(rows.sum)] if rows else [None] * 3),
            len(segments), width, ctypes.addressof(table), z.data_ptr(),
            len(apart.index) if apart else 0, apart.at if apart else 0,
            _address(apart.index if apart else None), _mask(mask),
        )  # fmt: skip
        if self._c.int8_input(ctypes.byref(how)):
            raise MemoryError("no memory left for an int8 product")
        return rows, z

    def int8_residual_(self, x: torch.Tensor, columns: torch.Tensor | None, rows: Quantized) -> None:
        if not self._has_int8 or not x.is_contiguous():
            super().int8_residual_(x, columns, rows)
            return
        self._c.int8_residual(
            _pointer(x), _pointer(columns), _int(x.shape[0]), _int(x.shape[1]), _int(rows.q.shape[1]),
            _int(rows.group), _int(rows.scale.shape[1]), _pointer(rows.q), _pointer(rows.scale),
        )  # fmt: skip

    def int8_product(
        self,
        x: Quantized,
        weight: torch.Tensor | Stored,
        outputs: int,
        columns: torch.Tensor,
        side: Side | None,
        z: torch.Tensor,
        mask: Dropout | None,
        bias: torch.Tensor | None,
        *,
        backward: bool,
    ) -> torch.Tensor:
        if not self._has_int8:
            return super().int8_product(x, weight, outputs, columns, side, z, mask, bias, backward=backward)
        panels = weight if isinstance(weight, torch.Tensor) else None
        stored = None if isinstance(weight, torch.Tensor) else _Stored(weight.parts, weight.columns, weight.inverse)
        t, k = x.q.shape
        y = torch.empty(t, outputs, dtype=_HALVES)
        how = _Int8Product(
            t, k, outputs, x.group, x.scale.shape[1], x.q.data_ptr(), x.scale.data_ptr(), _address(x.sum),
            _address(panels), ctypes.addressof(stored) if stored else None, backward, columns.data_ptr(),
            z.data_ptr(), _address(side.own if side else None), _address(side.common if side else None),
            z.shape[1], side.own.shape[1] if side else 0, side.common.shape[1] if side else 0,
            side.common_at if side else 0,
            _address(side.at if side else None), _mask(mask), _address(bias), y.data_ptr(),
        )  # fmt: skip
        if self._c.int8_product(ctypes.byref(how)):
            raise MemoryError("no memory left for an int8 product")
        return y

    def outer_rows(self, z: torch.Tensor, x: torch.Tensor, mask: Dropout | None, factor: float) -> torch.Tensor:
        if not self._has_int8 or z.stride(1) != 1 or x.stride(1) != 1:
            return super().outer_rows(z, x, mask, factor)
        t, r = z.shape
        out = torch.zeros(r, x.shape[1])
        if self._c.outer_rows(
            _pointer(z), _int(z.stride(0)), _int(r), _pointer(x), _int(x.stride(0)), _int(t), _int(x.shape[1]),
            ctypes.byref(_mask(mask)), ctypes.c_float(factor), _pointer(out),
        ):  # fmt: skip
            raise MemoryError("no memory left for an adapter's gradient")
        return out

    def nf4_pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if weight.dtype != _HALVES:
            return super().nf4_pack(weight)
        out, into = weight.shape
        packed = torch.empty(out, into // 2, dtype=torch.uint8)
        scales = torch.empty(out, into // 64, dtype=_HALVES)
        weight = weight.contiguous()
        self._c.nf4_pack(_pointer(weight), _int(out), _int(into), _pointer(packed), _pointer(scales))
        return packed, scales

    def blocks_widest(self, parts: Sequence[Blocks]) -> torch.Tensor:
        if not self._has_blocks:
            return super().blocks_widest(parts)
        widest = torch.zeros(parts[0].shape[1])
        self._measure(_Stored(parts), widest, None, None, None)
        return widest

    def blocks_scale(
        self, parts: Sequence[Blocks], columns: torch.Tensor, apart: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._has_blocks:
            return super().blocks_scale(parts, columns, apart)
        stored = _Stored(parts, columns)
        largest, picked = torch.empty(stored.N), torch.empty(stored.N, len(apart))
        self._measure(stored, None, largest, apart, picked)
        return largest, picked

    def _measure(
        self,
        stored: _Stored,
        widest: torch.Tensor | None,
        largest: torch.Tensor | None,
        apart: torch.Tensor | None,
        picked: torch.Tensor | None,
    ) -> None:
        count = 0 if apart is None else len(apart)
        if self._c.blocks_measure(
            ctypes.byref(stored), _pointer(widest), _pointer(largest), _pointer(apart), _int(count), _pointer(picked)
        ):  # fmt: skip
            raise MemoryError("no memory left for reading a weight")

    def blocks_decode(self, parts: Sequence[Blocks]) -> torch.Tensor:
        if not self._has_blocks:
            return super().blocks_decode(parts)
        stored = _Stored(parts)
        out = torch.empty(stored.N, stored.K)
        self._c.blocks_decode(ctypes.byref(stored), _int(0), _int(stored.N), _pointer(out))
        return out

    def int8_unpack(self, stored: Stored) -> torch.Tensor:
        if not self._has_blocks:
            return super().int8_unpack(stored)
        n, k = stored.shape
        panels = torch.empty(padded(n) // 16, k // 4, 16, 4, dtype=torch.uint8)
        how = _Stored(stored.parts, stored.columns, stored.inverse)
        self._c.int8_unpack(ctypes.byref(how), _pointer(panels))
        return panels

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[float, torch.Tensor]:
        """As the twin's; the gradient takes the logits' place."""
        if logits.dtype != _HALVES:
            return super().cross_entropy(logits, targets, weight)
        loss = torch.empty(len(targets))
        self._c.cross_entropy(
            _pointer(logits), _pointer(targets), _int(logits.shape[0]), _int(logits.shape[1]), ctypes.c_float(weight),
            _pointer(loss),
        )  # fmt: skip
        return float(loss.double().sum()), logits

    def _attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        pk: torch.Tensor | None,
        pv: torch.Tensor | None,
        layout: Layout,
        window: int | None,
    ) -> tuple[_Attention, torch.Tensor] | None:
        """The kernel's view of the operands, None where they are the twins' business."""
        t, heads, d = q.shape
        if q.dtype != _HALVES or not self._has_attention or d % 16:
            return None
        bounds = torch.tensor(layout.bounds, dtype=torch.int64)
        how = _Attention(
            t, heads, k.shape[1], d, layout.prefix, len(layout.bounds) - 1,
            q.stride(0), k.stride(0), 0 if pk is None else pk.stride(0), window or 0,
            bounds.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr(),
            None if pk is None else pk.data_ptr(), None if pv is None else pv.data_ptr(),
        )  # fmt: skip
        return how, bounds

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        layout: Layout,
        window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        how = self._attention(q, k, v, prefix_k, prefix_v, layout, window)
        if how is None:
            return super().attend(q, k, v, prefix_k, prefix_v, layout, window)
        t, heads, d = q.shape
        out, lse = torch.empty(t, heads, d, dtype=_HALVES), torch.empty(heads, t)
        if self._c.attend(ctypes.byref(how[0]), _pointer(out), _pointer(lse)):
            raise MemoryError("no memory left for attention")
        return out, lse

    def attend_backward(
        self,
        dout: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        out: torch.Tensor,
        saved: torch.Tensor,
        layout: Layout,
        window: int | None,
        dprefix_k: torch.Tensor | None,
        dprefix_v: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        how = self._attention(q, k, v, prefix_k, prefix_v, layout, window)
        if how is None:
            return super().attend_backward(
                dout, q, k, v, prefix_k, prefix_v, out, saved, layout, window, dprefix_k, dprefix_v
            )
        t, heads, d = q.shape
        n_kv = k.shape[1]
        together = torch.empty(t, heads + 2 * n_kv, d, dtype=_HALVES)  # the three gradients side by side, as qkv is
        dq, dk, dv = together.split([heads, n_kv, n_kv], dim=1)
        longest = max(end - start for start, end in layout.spans())
        scratch = torch.empty(2 * self._c.attention_pieces(_int(heads)) * (layout.prefix + longest) * d)
        dout = dout.contiguous()
        if self._c.attend_backward(
            ctypes.byref(how[0]), _pointer(dout), _pointer(out), _pointer(saved), _pointer(dq), _pointer(dk),
            _pointer(dv), _int(together.stride(0)), _int(together.stride(0)), _pointer(dprefix_k),
            _pointer(dprefix_v), _pointer(scratch),
        ):  # fmt: skip
            raise MemoryError("no memory left for attention")
        return dq, dk, dv

    def attend_cached(
        self,
        q: torch.Tensor,
        prefix_k: torch.Tensor | None,
        prefix_v: torch.Tensor | None,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: torch.Tensor,
        window: int | None,
    ) -> torch.Tensor:
        if q.dtype != _HALVES or not k.is_contiguous():
            return super().attend_cached(q, prefix_k, prefix_v, k, v, lengths, window)
        b, heads, d = q.shape
        out = torch.empty(b, heads, d, dtype=_HALVES)
        if self._c.attend_cached(
            _pointer(q), _int(q.stride(0)), _pointer(prefix_k), _pointer(prefix_v),
            _int(0 if prefix_k is None else prefix_k.shape[0]), _pointer(k), _pointer(v), _pointer(lengths),
            _int(k.shape[1]), _int(b), _int(heads), _int(k.shape[2]), _int(d), _int(window or 0), _pointer(out),
        ):  # fmt: skip
            raise MemoryError("no memory left for attention")
        return out
