"""Number formats of exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rescoldo.errors import EXIT_FAILURE, RescoldoError

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = ("Q8_0", "Q4_0")
_ALIASES = {"FP32": "F32", "FLOAT32": "F32", "FP16": "F16", "FLOAT16": "F16", "BFLOAT16": "BF16"}
_PIECE = 1 << 22  # elements quantized at a time


def parse_dtype(text: str, allowed: tuple[str, ...]) -> str:
    """The format that the user named, in ggml's spelling.

    Raises:
        RescoldoError: it is not in `allowed`.
    """
    name = _ALIASES.get(text.upper(), text.upper())
    if name not in allowed:
        raise RescoldoError(f"{text!r} cannot be written here", where="--dtype", fix=f"one of {', '.join(allowed)}")
    return name


def to_plain(tensor: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """Convert `tensor` to one of PLAIN.

    Raises:
        RescoldoError: a value is NaN, infinite, or too large for half precision.
    """
    result = tensor.to(PLAIN[dtype])
    if not bool(torch.isfinite(result).all()):
        whole = bool(torch.isfinite(tensor).all())
        raise RescoldoError(
            f"holds values that {'do not fit into ' + dtype if whole else 'are NaN or infinite'}",
            where=name,
            fix="--dtype BF16 or F32" if whole else "fetch the base model again, or train again",
            exit_code=EXIT_FAILURE,
        )
    return result


def encode(tensor: torch.Tensor, dtype: str, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A matrix (out, in) or vector in ggml's format: uint8 (out, bytes per row) or (bytes,).

    Raises:
        RescoldoError: a value cannot be represented.
    """
    if dtype in PLAIN:
        return to_plain(tensor, dtype, name).contiguous().view(torch.uint8).numpy()
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[dtype]
    block, size = GGML_QUANT_SIZES[kind]
    n_rows, n_columns = tensor.shape
    encoded = np.empty((n_rows, n_columns // block * size), np.uint8)
    step = max(_PIECE // n_columns, 1)
    for start in range(0, n_rows, step):
        rows = to_plain(tensor[start : start + step], "F32", name)
        encoded[start : start + step] = quantize(rows.numpy(), kind)
    return encoded
