"""The kernels of the C files in c/, built with the compiler at hand on first use and cached.

Their threads are their own (threads.c), as many as torch's setting says.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import KINDS, LazyInt8, QuantizedMatrix
from rescoldo.engine.kernels.build import ELSEWHERE, BuildError, InstructionSet, instruction_set, library
from rescoldo.engine.kernels.ops import Dropout
from rescoldo.engine.kernels.ops_int8 import LowRankTerm, Outliers, Quantized, Segment, level_type, padded
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.files import cache_root

_FLOATS, _HALVES = torch.float32, torch.bfloat16


def _pointer(x: torch.Tensor | None) -> ctypes.c_void_p:
    """The tensor's address. It does not keep the tensor alive: never pass a temporary (`x.contiguous()`)."""
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


def _int(x: int) -> ctypes.c_int64:
    return ctypes.c_int64(x)


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "H", "K", "d", "P", "n", "qs", "ks", "ps", "window")),
        *((name, ctypes.c_void_p) for name in ("bounds", "q", "k", "v", "pk", "pv")),
        ("scale", ctypes.c_float),
        ("cap", ctypes.c_float),
    )


class _Mask(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p), ("key", ctypes.c_int64), ("threshold", ctypes.c_int64), ("scale", ctypes.c_float),
    )  # fmt: skip


class _Segment(ctypes.Structure):
    _fields_ = (
        ("from", ctypes.c_int64), ("to", ctypes.c_int64), ("b", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("n", "np", "at")),
    )  # fmt: skip


class _Int8Input(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "K", "Kp", "group", "groups")),
        *((name, ctypes.c_void_p) for name in ("x", "channel_scale", "q", "scale", "sum")),
        ("segments", ctypes.c_int64), ("Z", ctypes.c_int64), ("segment", ctypes.c_void_p), ("z", ctypes.c_void_p),
        ("n_outliers", ctypes.c_int64), ("outliers_at", ctypes.c_int64), ("outliers", ctypes.c_void_p), ("mask", _Mask),
    )  # fmt: skip


class _Int8Entropy(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "V", "Vp", "group", "groups", "passes")),
        *((name, ctypes.c_void_p) for name in ("logits", "targets", "channel_scale", "q", "scale", "sum", "loss")),
        ("weight", ctypes.c_float),
    )


class _Int8Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "K", "N", "group", "groups")),
        *((name, ctypes.c_void_p) for name in ("q", "scale", "sum", "w", "lazy")),
        ("backward", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("channel_scale", "z", "own", "common")),
        *((name, ctypes.c_int64) for name in ("Z", "n_own", "n_common", "common_at")),
        ("at", ctypes.c_void_p), ("mask", _Mask), ("bias", ctypes.c_void_p), ("y", ctypes.c_void_p),
    )  # fmt: skip


def _address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "rows", "row_bytes")),
        *((name, ctypes.c_void_p) for name in ("data", "order", "scales")),
    )


class _Lazy(ctypes.Structure):
    """Keeps nothing alive but its own table: the tensors are the caller's."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("parts", "N", "K")),
        *((name, ctypes.c_void_p) for name in ("part", "channel_scale", "inverse")),
    )
    N: int
    K: int

    def __init__(
        self,
        parts: Sequence[QuantizedMatrix],
        channel_scale: torch.Tensor | None = None,
        inverse: torch.Tensor | None = None,
    ) -> None:
        self.table = (_Matrix * len(parts))(
            *(
                _Matrix(
                    KINDS.index(b.kind), b.shape[0], b.data.shape[1],
                    b.data.data_ptr(), _address(b.order), _address(b.scales),
                )
                for b in parts
            )
        )  # fmt: skip
        rows, into = sum(b.shape[0] for b in parts), parts[0].shape[1]
        super().__init__(
            len(parts), rows, into, ctypes.addressof(self.table), _address(channel_scale), _address(inverse)
        )


def _mask(how: Dropout | None) -> _Mask:
    if how is None:
        return _Mask(None, 0, 0, 0.0)
    return _Mask(how.rows.data_ptr(), how.key, how.threshold, how.scale)


_STRUCTURES = (
    _Mask,
    _Matrix,
    _Lazy,
    _Segment,
    _Int8Input,
    _Int8Entropy,
    _Int8Product,
    _Attention,
)  # as layout.c lists them


def _layout() -> list[int]:
    """Each structure's size and its members' offsets, as `kernels_layout` tells those of kernels.h."""
    found: list[int] = []
    for structure in _STRUCTURES:
        found.append(ctypes.sizeof(structure))
        found += [getattr(structure, name).offset for name, *_ in structure._fields_]
    return found


def _loaded(isa: InstructionSet) -> ctypes.CDLL:
    try:
        c = ctypes.CDLL(str(library(isa, cache_root(loadable=True) / "kernels")))
    except OSError as error:
        raise BuildError(f"the built kernels do not load: {error}", ELSEWHERE) from error
    count = ctypes.c_int64()
    c.kernels_layout.restype = ctypes.POINTER(ctypes.c_int64)
    if c.kernels_layout(ctypes.byref(count))[: count.value] != _layout():
        raise BuildError(f"the {isa.name} kernels were built from another kernels.h than this program expects")
    if c.kernels_start():
        raise BuildError(f"the system does not allow this program what the {isa.name} kernels need")
    c.kernels_set_threads.argtypes = [ctypes.c_int64]
    return c


class NativeKernels(TorchKernels):
    """The same operations in C for bfloat16; float32 tensors go to PyTorch's."""

    def __init__(self, name: str) -> None:
        """The kernels for the instruction set of that name, whatever this CPU has.

        Raises:
            BuildError: no compiler, or the library does not load.
        """
        self._library, self.name = _loaded(instruction_set(name)), name
        self.qmax = int(self._library.kernels_qmax())

    @cached_property
    def version(self) -> str:  # type: ignore[override]
        return hashlib.sha256(Path(self._library._name).read_bytes()).hexdigest()

    @property
    def _c(self) -> ctypes.CDLL:
        """The library, for one call, which uses as many threads as torch would."""
        self._library.kernels_set_threads(torch.get_num_threads())
        return self._library

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

    def gelu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        if gate_up.dtype != _HALVES:
            return super().gelu_mul(gate_up)
        t, f = gate_up.shape[0], gate_up.shape[1] // 2
        a = torch.empty(t, f, dtype=_HALVES)
        gate_up = gate_up.contiguous()
        self._c.gelu_mul(_pointer(gate_up), _int(t), _int(f), _pointer(a))
        return a

    def gelu_mul_backward_(self, gate_up: torch.Tensor, da: torch.Tensor) -> None:
        if gate_up.dtype != _HALVES or not gate_up.is_contiguous():
            super().gelu_mul_backward_(gate_up, da)
            return
        da = da.contiguous()
        t, f = da.shape
        self._c.gelu_mul_backward(_pointer(gate_up), _pointer(da), _int(t), _int(f))

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

    def int8_pack(self, weight: torch.Tensor, channel_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if weight.dtype != _HALVES:
            return super().int8_pack(weight, channel_scale)
        weight, (n, k) = weight.contiguous(), weight.shape
        panels, scale = torch.empty(padded(n) // 16, padded(k) // 4, 16, 4, dtype=torch.uint8), torch.empty(n)
        if self._c.int8_pack(
            _pointer(weight), _pointer(channel_scale), _int(n), _int(k), _pointer(panels), _pointer(scale)
        ):  # fmt: skip
            raise MemoryError("no memory left for packing a weight")
        return panels, scale

    def int8_input(
        self,
        x: torch.Tensor,
        channel_scale: torch.Tensor | None,
        group: int | None,
        segments: Sequence[Segment],
        outliers: Outliers | None,
        width: int,
        mask: Dropout | None,
    ) -> tuple[Quantized | None, torch.Tensor]:
        x = x.contiguous()
        t, k = x.shape
        kp = padded(k)
        groups = -(-kp // group) if group else 0
        rows: Quantized | None = None
        if group:
            q, scale = torch.empty(t, kp, dtype=level_type(self.qmax)), torch.empty(t, groups)
            rows = Quantized(q, scale, torch.empty(t, groups, dtype=torch.int32) if q.itemsize == 1 else None, group)
        z = torch.empty(t, width)
        table = (_Segment * max(1, len(segments)))(
            *(_Segment(s.start, s.end, s.b.data_ptr(), s.n, s.b.shape[1], s.at) for s in segments)
        )
        how = _Int8Input(
            t, k, kp, group or 0, groups, x.data_ptr(), _address(channel_scale),
            *([rows.q.data_ptr(), rows.scale.data_ptr(), _address(rows.sum)] if rows else [None] * 3),
            len(segments), width, ctypes.addressof(table), z.data_ptr(),
            len(outliers.index) if outliers else 0, outliers.at if outliers else 0,
            _address(outliers.index if outliers else None), _mask(mask),
        )  # fmt: skip
        if self._c.int8_input(ctypes.byref(how)):
            raise MemoryError("no memory left for an int8 product")
        return rows, z

    def int8_residual_(self, x: torch.Tensor, channel_scale: torch.Tensor | None, rows: Quantized) -> None:
        if not x.is_contiguous():
            super().int8_residual_(x, channel_scale, rows)
            return
        self._c.int8_residual(
            _pointer(x), _pointer(channel_scale), _int(x.shape[0]), _int(x.shape[1]), _int(rows.q.shape[1]),
            _int(rows.group), _int(rows.scale.shape[1]), _pointer(rows.q), _pointer(rows.scale),
        )  # fmt: skip

    def int8_product(
        self,
        x: Quantized,
        weight: torch.Tensor | LazyInt8,
        outputs: int,
        channel_scale: torch.Tensor,
        low_rank: LowRankTerm | None,
        z: torch.Tensor,
        mask: Dropout | None,
        bias: torch.Tensor | None,
        *,
        backward: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        panels = weight if isinstance(weight, torch.Tensor) else None
        lazy = None if isinstance(weight, torch.Tensor) else _Lazy(weight.parts, weight.channel_scale, weight.inverse)
        t, k = x.q.shape
        y = torch.empty(t, outputs, dtype=_HALVES) if out is None else out
        how = _Int8Product(
            t, k, outputs, x.group, x.scale.shape[1], x.q.data_ptr(), x.scale.data_ptr(), _address(x.sum),
            _address(panels), ctypes.addressof(lazy) if lazy else None, backward, channel_scale.data_ptr(),
            z.data_ptr(), _address(low_rank.own if low_rank else None), _address(low_rank.common if low_rank else None),
            z.shape[1], low_rank.own.shape[1] if low_rank else 0, low_rank.common.shape[1] if low_rank else 0,
            low_rank.common_at if low_rank else 0,
            _address(low_rank.at if low_rank else None), _mask(mask), _address(bias), y.data_ptr(),
        )  # fmt: skip
        if self._c.int8_product(ctypes.byref(how)):
            raise MemoryError("no memory left for an int8 product")
        return y

    def outer_rows(
        self, z: torch.Tensor, x: torch.Tensor, mask: Dropout | None, factor: float, *, transposed: bool = False
    ) -> torch.Tensor:
        if z.stride(1) != 1 or x.stride(1) != 1:
            return super().outer_rows(z, x, mask, factor, transposed=transposed)
        (t, r), c = z.shape, x.shape[1]
        out = torch.empty((c, r) if transposed else (r, c))
        if self._c.outer_rows(
            _pointer(z), _int(z.stride(0)), _int(r), _pointer(x), _int(x.stride(0)), _int(t), _int(c),
            ctypes.byref(_mask(mask)), ctypes.c_float(factor), ctypes.c_int(transposed), _pointer(out),
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

    def blocks_widest(self, parts: Sequence[QuantizedMatrix]) -> torch.Tensor:
        widest = torch.zeros(parts[0].shape[1])
        self._measure(_Lazy(parts), widest, None, None, None)
        return widest

    def blocks_scale(
        self, parts: Sequence[QuantizedMatrix], channel_scale: torch.Tensor, outliers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lazy = _Lazy(parts, channel_scale)
        largest, picked = torch.empty(lazy.N), torch.empty(lazy.N, len(outliers))
        self._measure(lazy, None, largest, outliers, picked)
        return largest, picked

    def _measure(
        self,
        lazy: _Lazy,
        widest: torch.Tensor | None,
        largest: torch.Tensor | None,
        outliers: torch.Tensor | None,
        picked: torch.Tensor | None,
    ) -> None:
        count = 0 if outliers is None else len(outliers)
        if self._c.blocks_measure(
            ctypes.byref(lazy), _pointer(widest), _pointer(largest), _pointer(outliers), _int(count), _pointer(picked)
        ):  # fmt: skip
            raise MemoryError("no memory left for reading a weight")

    def blocks_decode(self, parts: Sequence[QuantizedMatrix]) -> torch.Tensor:
        lazy = _Lazy(parts)
        out = torch.empty(lazy.N, lazy.K)
        self._c.blocks_decode(ctypes.byref(lazy), _int(0), _int(lazy.N), _pointer(out))
        return out

    def int8_unpack(self, lazy: LazyInt8) -> torch.Tensor:
        n, k = lazy.shape
        panels = torch.empty(padded(n) // 16, k // 4, 16, 4, dtype=torch.uint8)
        how = _Lazy(lazy.parts, lazy.channel_scale, lazy.inverse)
        self._c.int8_unpack(ctypes.byref(how), _pointer(panels))
        return panels

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[float, torch.Tensor]:
        """As PyTorch's; the gradient takes the logits' place."""
        if logits.dtype != _HALVES:
            return super().cross_entropy(logits, targets, weight)
        loss = torch.empty(len(targets))
        self._c.cross_entropy(
            _pointer(logits), _pointer(targets), _int(logits.shape[0]), _int(logits.shape[1]), ctypes.c_float(weight),
            _pointer(loss),
        )  # fmt: skip
        return float(loss.double().sum()), logits

    def int8_cross_entropy_(
        self, logits: torch.Tensor, targets: torch.Tensor, weight: float, channel_scale: torch.Tensor, group: int
    ) -> tuple[float, Quantized]:
        """As PyTorch's; where the vocabulary needs no padding, q is in the logits' memory."""
        if logits.dtype != _HALVES or not logits.is_contiguous():
            return super().int8_cross_entropy_(logits, targets, weight, channel_scale, group)
        (t, v), kind = logits.shape, level_type(self.qmax)
        vp, passes = padded(v), 2 if self.qmax == 127 else 1
        groups = -(-vp // group)
        q = logits.view(kind).view(passes * t, v) if v == vp else torch.empty(passes * t, vp, dtype=kind)
        scale, loss = torch.empty(passes * t, groups), torch.empty(t)
        rows = Quantized(q, scale, torch.empty(scale.shape, dtype=torch.int32) if passes == 2 else None, group)
        how = _Int8Entropy(
            t, v, vp, group, groups, passes, logits.data_ptr(), targets.data_ptr(), channel_scale.data_ptr(),
            q.data_ptr(), scale.data_ptr(), _address(rows.sum), loss.data_ptr(), weight,
        )  # fmt: skip
        if self._c.int8_entropy(ctypes.byref(how)):
            raise MemoryError("no memory left for the loss")
        return float(loss.double().sum()), rows

    def _attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        pk: torch.Tensor | None,
        pv: torch.Tensor | None,
        layout: Layout,
        window: int | None,
        scale: float | None,
        soft_cap: float | None,
    ) -> tuple[_Attention, torch.Tensor] | None:
        """The kernel's view of the operands, None where they are the PyTorch's business."""
        t, heads, d = q.shape
        if q.dtype != _HALVES or d % 16:
            return None
        bounds = torch.tensor(layout.bounds, dtype=torch.int64)
        how = _Attention(
            t, heads, k.shape[1], d, layout.prefix, len(layout.bounds) - 1,
            q.stride(0), k.stride(0), 0 if pk is None else pk.stride(0), window or 0,
            bounds.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr(),
            None if pk is None else pk.data_ptr(), None if pv is None else pv.data_ptr(), scale or 0.0, soft_cap or 0.0,
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
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        how = self._attention(q, k, v, prefix_k, prefix_v, layout, window, scale, soft_cap)
        if how is None:
            return super().attend(q, k, v, prefix_k, prefix_v, layout, window, scale, soft_cap)
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
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        how = self._attention(q, k, v, prefix_k, prefix_v, layout, window, scale, soft_cap)
        if how is None:
            return super().attend_backward(
                dout, q, k, v, prefix_k, prefix_v, out, saved, layout, window, dprefix_k, dprefix_v, scale, soft_cap
            )
        t, heads, d = q.shape
        n_kv = k.shape[1]
        together = torch.empty(t, heads + 2 * n_kv, d, dtype=_HALVES)  # the three gradients side by low_rank, as qkv is
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
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        if q.dtype != _HALVES or not k.is_contiguous():
            return super().attend_cached(q, prefix_k, prefix_v, k, v, lengths, window, scale, soft_cap)
        b, heads, d = q.shape
        out = torch.empty(b, heads, d, dtype=_HALVES)
        found = None if prefix_k is None else torch.empty(b, heads, d + 2)
        if self._c.attend_cached(
            _pointer(q), _int(q.stride(0)), _pointer(prefix_k), _pointer(prefix_v),
            _int(0 if prefix_k is None else prefix_k.shape[0]), _pointer(k), _pointer(v), _pointer(lengths),
            _int(k.shape[1]), _int(b), _int(heads), _int(k.shape[2]), _int(d), _int(window or 0),
            ctypes.c_float(scale or 0.0), ctypes.c_float(soft_cap or 0.0), _pointer(out), _pointer(found),
        ):  # fmt: skip
            raise MemoryError("no memory left for attention")
        return out
