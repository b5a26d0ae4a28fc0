"""Converts weights to a precision layer by layer, including int8's calibration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch

from rescoldo.engine.attend import PackedAttention
from rescoldo.engine.config import SITES, DecoderConfig
from rescoldo.engine.converted import ConvertedWeights
from rescoldo.engine.int8 import Int8Linear, smoothing
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import Matrix, QuantizedMatrix
from rescoldo.engine.kernels.choose import kernels, select_rows
from rescoldo.engine.kernels.ops import Dropout
from rescoldo.engine.layer import Layer, Rows
from rescoldo.engine.layer_inputs import LayerEmbeddings
from rescoldo.engine.linear import FrozenLinear, PlainLinear
from rescoldo.engine.lora import Kept, LoraGroup
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.engine.rope import RopeTables
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError

_CALIBRATION_TOKENS = 4_000_000  # divided by the hidden size: 4 examples with the sample model, one with a 7B


Build = Callable[[str, FrozenLinear], LoraGroup]
Weights = Sequence[Matrix]


class Converter:
    """Converts layer after layer from the lowest up. For int8 it propagates calibration rows through the layers that it
    has made, so that every weight is read once.

    Calibrated precisions differ in how the weights are stored. Weights that a file stores in blocks stay so.

    Args:
        config: the decoder's shapes.
        precision: a key of PRECISIONS.
        calibration: examples for measuring input ranges (calibrated precisions without `state`).
        state: earlier measurements, "layers.3.qkv" → each input column's largest magnitude (in,) float32.
        embedding: (V, D), to embed the calibration tokens.
        converted: the disk cache of converted weights.
        layer_embeddings: the per-layer embeddings, in models that have them.
    """

    def __init__(
        self,
        config: DecoderConfig,
        precision: str,
        calibration: Sequence[Example] | None,
        state: dict[str, torch.Tensor] | None,
        embedding: Matrix,
        converted: ConvertedWeights | None = None,
        layer_embeddings: LayerEmbeddings | None = None,
    ) -> None:
        self.config, self.precision, self.converted = config, PRECISIONS[precision], converted
        self.state: dict[str, torch.Tensor] = dict(state or {})
        self.rows: Rows | None = None
        self.precision.check(config)
        self._unpacked = not self.precision.keeps_blocks(config)
        if self.precision.calibrated and not self.state:
            if not calibration:
                raise RescoldoError(
                    f"{precision} needs examples to measure input ranges",
                    fix="give calibration examples, or use bf16",
                )
            budget = max(256, _CALIBRATION_TOKENS // config.hidden_size)
            tokens: list[int] = []
            bounds = [0]
            for example in calibration:
                part = example.tokens[: budget - bounds[-1]]
                if part:
                    tokens += part
                    bounds.append(len(tokens))
            self.h = embed(embedding, torch.tensor(tokens), config)
            positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(bounds)])
            own = layer_embeddings.rows(torch.tensor(tokens), self.h) if layer_embeddings else []
            self.rows = Rows(RopeTables(config).at(positions), positions, layer_inputs=own)
            self.attend = PackedAttention(Layout(tuple(bounds), 0))

    def layer(
        self, index: int, weights: dict[str, Weights], tensors: dict[str, torch.Tensor], build: Build
    ) -> dict[str, LoraGroup]:
        """The four groups of a layer in the precision; `build` adds adapters and biases to each, `tensors` are the
        layer's other tensors.

        Quantized matrices (calibrated precisions only) are used directly.
        """
        if not self.precision.calibrated:
            dtype = self.precision.dtype
            return {site: build(site, PlainLinear(_dense(weights[site]), dtype)) for site in SITES}
        if self.rows is not None:
            return self._measure(index, weights, tensors, build)
        return {site: build(site, self.integer(f"layers.{index}.{site}", weights[site])) for site in SITES}

    def integer(self, key: str, weights: Weights, *, two_pass: bool = False) -> Int8Linear:
        """The weights for 8-bit products, with the input ranges that `state` has under `key`."""
        found = self.converted.read(key, self.state[key]) if self.converted else None
        if found is not None:
            return Int8Linear.restored(found, two_pass=two_pass)
        pack = self.precision.pack
        if pack is not None and not two_pass:
            weights = [w if isinstance(w, QuantizedMatrix) else pack(w) for w in weights]
        channel_scale, outliers = smoothing(self.state[key], weights)
        linear = Int8Linear(weights, channel_scale, outliers, two_pass=two_pass, unpacked=self._unpacked)
        if self.converted:
            self.converted.write(key, self.state[key], linear.tensors())
        return linear

    def head(self, weight: Matrix, norm: torch.Tensor) -> FrozenLinear:
        """The output layer's weight (V, D) after the last norm (D,); must be called after the last layer. In all
        calibrated precisions it is stored as int8."""
        if not self.precision.calibrated:
            return PlainLinear(_dense([weight]), self.precision.dtype)
        if self.rows is not None:
            x, _, _ = kernels().rms_norm(self.h, norm, self.config.norm_eps)
            self.state["head"] = x.abs().amax(0).float()
        return self.integer("head", [weight], two_pass=True)

    def _measure(
        self, index: int, weights: dict[str, Weights], tensors: dict[str, torch.Tensor], build: Build
    ) -> dict[str, LoraGroup]:
        assert self.rows is not None
        measuring = {site: _Measuring(self, f"layers.{index}.{site}", site, weights[site], build) for site in SITES}
        layer = Layer(index, self.config, cast("dict[str, LoraGroup]", measuring), tensors, torch.bfloat16)
        self.h, _ = layer.forward(self.h, self.rows, self.attend)
        return {site: one.made() for site, one in measuring.items()}


class _Measuring:
    """Replaces a group of linears in the calibration pass: measures its input, then makes the group and delegates to
    it."""

    def __init__(self, converter: Converter, key: str, site: str, weights: Weights, build: Build) -> None:
        self.converter, self.key, self.site, self.weights, self.build = converter, key, site, weights, build
        self.adapted: list[object] = []
        self.group: LoraGroup | None = None

    def forward(self, x: torch.Tensor, mask: Dropout | None, bare: int = 0) -> tuple[torch.Tensor, Kept]:
        self.converter.state[self.key] = x.abs().amax(0).float()
        self.group = self.build(self.site, self.converter.integer(self.key, self.weights))
        return self.group.forward(x, mask, bare)

    def made(self) -> LoraGroup:
        assert self.group is not None
        return self.group


def embed(embedding: Matrix, tokens: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """tokens (T,) int64 → the first layer's input (T, D) float32."""
    h = select_rows(embedding, tokens)
    return h if config.embedding_scale == 1.0 else h * config.embedding_scale


def _dense(weights: Weights) -> list[torch.Tensor]:
    return [kernels().blocks_decode([w]) if isinstance(w, QuantizedMatrix) else w for w in weights]
