"""The precisions of the frozen weights, one row each. Imports torch only when a row's `dtype` or `pack` is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rescoldo.engine.config import DecoderConfig
from rescoldo.errors import RescoldoError

if TYPE_CHECKING:
    import torch

    from rescoldo.engine.kernels.blocks import Matrix

AUTO = "auto"  # the fastest one that fits: engine.auto.choose_precision
SMALL = 1 << 30  # number of weights; for smaller models int8 unpacks a file's blocks once, at loading


@dataclass(frozen=True)
class Precision:
    """How the frozen linears are stored and multiplied.

    Attributes:
        name: as in --quantization, checkpoints and results.
        bytes_per_weight: of a linear in memory, including scales.
        element: torch's name of the dtype of activations, norms, biases and embeddings.
        product: the kind of matrix product: one of `engine.auto.PRODUCTS`.
        overhead: duration of a step relative to its products (estimated): quantizing and scaling for int8, and
            unpacking for nf4.
        calibrated: whether products are in int8, with input ranges measured on examples.
        block: the number of a linear's inputs must be a multiple of it.
        keeps_blocks_above: linears that the file stores in blocks (Q4_K, …) stay so in models with more weights than
            this.
        pack: converts a linear's weight (out, in) to the format it is stored in before int8 products; None: int8.
        aliases: other names for it.
    """

    name: str
    bytes_per_weight: float
    element: str
    product: str
    overhead: float = 1.0
    calibrated: bool = False
    block: int = 1
    keeps_blocks_above: float = math.inf
    pack: Callable[[torch.Tensor], Matrix] | None = None
    aliases: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype named by `element`."""
        import torch

        found: torch.dtype = getattr(torch, self.element)
        return found

    @property
    def element_bytes(self) -> int:
        """Bytes of an activation's element."""
        return 4 if self.element == "float32" else 2

    def keeps_blocks(self, config: DecoderConfig) -> bool:
        """Whether linears that a model's file stores in blocks stay so."""
        return config.linear_weights > self.keeps_blocks_above

    def misfits(self, config: DecoderConfig) -> dict[str, int]:
        """The linears (short names) whose number of inputs is not a multiple of `block`, and that number."""
        found: dict[str, int] = {}
        for layer in range(config.n_layers):
            inputs = {name: config.linear_shape(name, layer)[1] for name in config.layer_linears(layer)}
            found |= {name: size for name, size in inputs.items() if size % self.block}
        return found

    def check(self, config: DecoderConfig, where: str = "", model: str = "this model") -> None:
        """Check that this precision can store a decoder of these shapes.

        Raises:
            RescoldoError: some linears have a number of inputs that is not a multiple of `block`.
        """
        if wrong := self.misfits(config):
            raise RescoldoError(
                f"{self.name} needs linears whose inputs are a multiple of {self.block}: "
                + ", ".join(f"{name} has {size}" for name, size in wrong.items()),
                where=where,
                fix=f"allowed for {model}: {', '.join([AUTO, *fitting(config)])}",
            )


def _pack_nf4(weight: torch.Tensor) -> Matrix:
    from rescoldo.engine.kernels.blocks import NF4, QuantizedMatrix
    from rescoldo.engine.kernels.choose import kernels

    packed, scales = kernels().nf4_pack(weight)
    return QuantizedMatrix(NF4, packed, (weight.shape[0], weight.shape[1]), scales)


_ROWS = (
    Precision("int8", 1.02, "bfloat16", "int8", 1.08, calibrated=True, keeps_blocks_above=SMALL),
    Precision(
        *("nf4", 0.53125, "bfloat16", "int8", 1.15),
        calibrated=True,
        block=64,
        keeps_blocks_above=0,
        pack=_pack_nf4,
        aliases=("bnb4",),
    ),
    Precision("bf16", 2.0, "bfloat16", "bf16"),
    Precision("fp32", 4.0, "float32", "fp32"),
)
PRECISIONS = {row.name: row for row in _ROWS}
ALLOWED = ", ".join(  # for messages and help
    [AUTO, *(f"{row.name} (or {', '.join(row.aliases)})" if row.aliases else row.name for row in _ROWS)]
)


def canonical(name: str) -> str:
    """The table's name for an alias ("bnb4" → "nf4"); other text is returned unchanged."""
    return next((row.name for row in _ROWS if name in row.aliases), name)


def is_calibrated(name: object) -> bool:
    """Whether the precision with this name needs calibration."""
    return isinstance(name, str) and name in PRECISIONS and PRECISIONS[name].calibrated


def fitting(config: DecoderConfig, *, calibrated: bool = True) -> Collection[str]:
    """The precisions that can store a decoder of these shapes; without `calibrated`, only those without calibration."""
    return [row.name for row in _ROWS if not row.misfits(config) and (calibrated or not row.calibrated)]
