"""Quantized Hugging Face checkpoints: FP8 and bitsandbytes' formats are decoded; others are refused by name.

The format of a matrix follows from the tensors that accompany it (scales, quantization maps) and from config.json's
quantization_config. Scales of activations are ignored: they are meant for 8-bit products, for which the engine has its
own calibration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rescoldo.errors import RescoldoError

GetTensor = Callable[[str], torch.Tensor]

_WAY_OUT = "use the model's unquantized safetensors, or a GGUF file of it"
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_FP8_METHODS = ("fp8", "fbgemm_fp8")
_COMPRESSED_FORMATS = ("float-quantized", "naive-quantized")
_BNB_STATE = "quant_state.bitsandbytes__"
_SCALES = ("weight_scale_inv", "weight_scale")  # both are factors of the stored numbers
_BNB_PARTS = ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", "SCB")
# scales of activations and of the KV cache, bitsandbytes' layout (row by row on disk), compressed-tensors' shapes
_LEFT_ALONE = (
    *("input_scale", "activation_scale", "output_scale", "k_scale", "v_scale", "input_scale_ub"),
    *("weight_format", "weight_shape"),
)
_OTHERS = {  # names of tensors in unsupported formats
    "qweight": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors, packed integers",
    "codebooks": "AQLM",
    "W_q": "HQQ",
    "weight_scales": "EETQ",
    "biases": "MLX",
    "weight_blocks": "MXFP4",
    "weight_scale_2": "NVFP4",
}


@dataclass(frozen=True)
class Quantization:
    """The quantization in config.json: the method and, for FP8, the size of blocks with a scale (rows, columns)."""

    method: str
    block: tuple[int, int] | None = None


def read_quantization(config: Mapping[str, Any], where: str) -> Quantization | None:
    """The quantization of a checkpoint's weights; None if they are not quantized.

    Raises:
        RescoldoError: the format is not supported.
    """
    if config.get("quantization"):  # MLX's key
        raise _refusal("MLX", where)
    said = config.get("quantization_config")
    if not said:
        return None
    if not isinstance(said, dict):
        raise _refusal(f"{said!s:.40}", where)
    method = str(said.get("quant_method", "?"))
    if "quant_method" not in said and {"group_size", "bits"} <= said.keys():
        raise _refusal("MLX", where)
    if "quant_method" not in said and (said.get("load_in_4bit") or said.get("load_in_8bit")):
        method = "bitsandbytes"
    if method == "compressed-tensors":
        form = str(said.get("format"))
        if form not in _COMPRESSED_FORMATS or not _is_fp8(said):
            raise _refusal(f"compressed-tensors {form:.40}", where)
        return Quantization("fp8", _block_of_groups(said))
    if method in _FP8_METHODS:
        return Quantization("fp8", _block(said.get("weight_block_size"), where))
    if method == "bitsandbytes":
        return Quantization(method)
    raise _refusal(f"{method:.40}", where)


def _is_fp8(said: Mapping[str, Any]) -> bool:
    groups = said.get("config_groups")
    weights = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    return bool(weights) and all(
        isinstance(one, dict) and one.get("type") == "float" and one.get("num_bits") == 8 for one in weights
    )


def _block_of_groups(said: Mapping[str, Any]) -> tuple[int, int] | None:
    found = [group["weights"].get("block_structure") for group in said["config_groups"].values()]
    return _block(found[0], "quantization_config")


def _block(value: Any, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) and 0 < n < 1 << 20 for n in value):
        raise RescoldoError(f"the blocks of the quantized weights are {value!r:.40}: expected two sizes", where=where)
    return value[0], value[1]


def _refusal(method: str, where: str) -> RescoldoError:
    return RescoldoError(f"the weights are quantized ({method}), which is not supported in this format", where=where,
                         fix=_WAY_OUT)  # fmt: skip


class Quantized:
    """The parts of quantized matrices among a checkpoint's tensors.

    Args:
        quantization: from `read_quantization`.
        get: returns a tensor by its name.
        where: for messages.
    """

    def __init__(self, quantization: Quantization | None, get: GetTensor, where: str) -> None:
        self.quantization, self.where = quantization, where
        self._get = get
        self._parts: dict[str, dict[str, str]] = {}  # module → part → the tensor's name
        self._states: dict[str, dict[str, Any]] = {}

    def take(self, name: str) -> bool:
        """Whether a tensor is a part of a quantized matrix, or an unused companion of one; it is registered.

        Raises:
            RescoldoError: it belongs to an unsupported format.
        """
        module, kind = _split(name)
        if kind in _OTHERS:
            raise _refusal(f"{_OTHERS[kind]}, as its tensor {name} says", self.where)
        if self.quantization is None:
            if kind in (*_SCALES, *_BNB_PARTS, "scales") or kind.startswith(f"weight.{_BNB_STATE}"):
                raise RescoldoError(
                    f"tensor {name} belongs to a quantized checkpoint, but config.json does not say of which kind",
                    where=self.where,
                    fix="fetch config.json again, or " + _WAY_OUT,
                )
            return False
        if kind in (*_SCALES, *_BNB_PARTS) or kind.startswith(f"weight.{_BNB_STATE}"):
            self._parts.setdefault(module, {})[kind.rpartition("__")[0] + "__" if "__" in kind else kind] = name
            return True
        return kind in _LEFT_ALONE

    def decodes(self, name: str) -> bool:
        """Whether the tensor with this name is a quantized matrix."""
        module, kind = _split(name)
        return kind == "weight" and module in self._parts

    def shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The matrix's shape; `stored` is that of its bytes.

        Raises:
            RescoldoError: its description is damaged.
        """
        parts = self._parts[_split(name)[0]]
        return tuple(self._state(name)["shape"]) if f"weight.{_BNB_STATE}" in parts else stored

    def decode(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """The decoded matrix: float32 for FP8 and int8, the original dtype for bitsandbytes' 4-bit formats.

        Raises:
            RescoldoError: its parts do not fit together.
        """
        parts = self._parts[_split(name)[0]]
        if f"weight.{_BNB_STATE}" in parts:
            return self._four_bits(name, stored, parts)
        if "SCB" in parts and stored.dtype == torch.int8:
            scale = self._get(parts["SCB"]).float()
            if scale.shape != stored.shape[:1]:
                raise self._fault(name, f"its scales are {list(scale.shape)}, not {list(stored.shape[:1])}")
            return stored.float() * (scale / 127.0)[:, None]  # bitsandbytes' LLM.int8
        scales = [part for part in _SCALES if part in parts]
        if len(scales) == 1 and stored.dtype in _FP8 and stored.dim() == 2:
            return stored.float() * self._expanded(name, self._get(parts[scales[0]]).float(), stored.shape)
        raise self._fault(name, f"{stored.dtype} with {', '.join(parts)} is an unknown format")

    def _expanded(self, name: str, scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The scale of each element: one for the matrix, for each row, or for each block."""
        rows, columns = shape
        if scale.numel() == 1:
            return scale.reshape(1, 1)
        if scale.shape in ((rows,), (rows, 1)):
            return scale.reshape(rows, 1)
        block = self.quantization.block if self.quantization else None
        if block and scale.shape == (math.ceil(rows / block[0]), math.ceil(columns / block[1])):
            return scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
        raise self._fault(name, f"scales of shape {list(scale.shape)} do not fit a matrix of {list(shape)}")

    def _four_bits(self, name: str, stored: torch.Tensor, parts: Mapping[str, str]) -> torch.Tensor:
        """bitsandbytes' nf4 and fp4: two numbers per byte, the first in the upper half; a number is quant_map[code]
        times its block's absmax, which may itself be quantized (nested)."""
        state = self._state(name)
        n, block = math.prod(state["shape"]), state["blocksize"]
        try:
            levels, absmax = self._get(parts["weight.quant_map"]).float(), self._get(parts["weight.absmax"])
            if "weight.nested_absmax" in parts:
                nested, of = self._get(parts["weight.nested_absmax"]).float(), state["nested_blocksize"]
                scales = self._get(parts["weight.nested_quant_map"]).float()[absmax.long()]
                absmax = scales * nested.repeat_interleave(of)[: len(scales)] + state["nested_offset"]
        except KeyError as error:
            raise self._fault(name, f"{error.args[0]} is missing") from None
        except IndexError:
            raise self._fault(name, "nested_quant_map is too short") from None
        codes = stored.reshape(-1).view(torch.uint8)
        if len(codes) != -(-n // 2) or absmax.dim() != 1 or len(absmax) != -(-n // block) or len(levels) != 16:
            raise self._fault(name, f"its parts do not fit a matrix of {state['shape']} in blocks of {block}")
        numbers = levels[torch.stack((codes >> 4, codes & 15), 1).flatten().long()][:n]
        full = torch.nn.functional.pad(numbers, (0, len(absmax) * block - n)).view(-1, block)
        values = (full * absmax.float()[:, None]).flatten()[:n].view(state["shape"])
        return values.to(state["dtype"])

    def _state(self, name: str) -> dict[str, Any]:
        if name not in self._states:
            part = self._parts[_split(name)[0]][f"weight.{_BNB_STATE}"]
            raw = self._get(part)
            try:
                if raw.dtype != torch.uint8 or raw.numel() > 1 << 16:
                    raise ValueError("not a short text")
                said = json.loads(raw.numpy().tobytes())
                shape = [int(n) for n in said["shape"]]
                state: dict[str, Any] = {
                    "shape": shape,
                    "blocksize": int(said["blocksize"]),
                    "dtype": {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[
                        str(said["dtype"])
                    ],
                    "nested_blocksize": int(said.get("nested_blocksize", 256)),
                    "nested_offset": float(said.get("nested_offset", 0.0)),
                }
                sizes = (*shape, state["blocksize"], state["nested_blocksize"])
                if len(shape) != 2 or not all(0 < size < 1 << 32 for size in sizes):
                    raise ValueError("impossible sizes")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise self._fault(name, f"quant_state: {error!s:.80}") from None
            self._states[name] = state
        return self._states[name]

    def _fault(self, name: str, reason: str) -> RescoldoError:
        return RescoldoError(f"the quantized weight {name} cannot be decoded: {reason}", where=self.where, fix=_WAY_OUT)


def _split(name: str) -> tuple[str, str]:
    """("model.layers.0.mlp.up_proj", "weight.absmax") of a tensor's name."""
    head, dot, tail = name.partition(".weight.")
    if dot:
        return head, f"weight.{tail}"
    module, _, kind = name.rpartition(".")
    return module, kind
