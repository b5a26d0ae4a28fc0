"""The activations that a training pass keeps for the backward pass, and those that it recomputes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rescoldo.engine.attend import Attend
from rescoldo.engine.layer import Layer, LayerSaved, Rows


class SavedActivations:
    """The activations of one forward pass, which the backward pass takes from the top layer down.

    Layers from `first_kept` up keep their activations. Below, gradient checkpointing is used: the input of every second
    layer is kept, and two layers at a time are recomputed from it, with the same bits.

    Args:
        layers: the decoder's layers.
        rows, attend: of the pass.
        first_kept: the lowest layer that keeps its activations.
        lowest: the layer where the backward pass ends; lower layers keep nothing.
    """

    def __init__(self, layers: Sequence[Layer], rows: Rows, attend: Attend, first_kept: int, lowest: int = 0) -> None:
        self.layers, self.rows, self.attend = layers, rows, attend
        self.first_kept, self.lowest = first_kept, lowest
        self._inputs: dict[int, torch.Tensor] = {}
        self._kept: dict[int, LayerSaved] = {}

    def before(self, layer: int, h: torch.Tensor) -> None:
        """Called before a layer with its input (T, D), which the layer will overwrite."""
        if self.lowest <= layer < self.first_kept and (layer - self.lowest) % 2 == 0:
            self._inputs[layer] = h.clone()

    def after(self, layer: int, saved: LayerSaved) -> None:
        """Called after a layer with the activations that its forward pass returned."""
        if layer >= self.first_kept:
            self._kept[layer] = saved

    def pop(self, layer: int) -> LayerSaved:
        """Remove and return the activations of `layer`, the topmost one left, recomputing them if needed."""
        if layer in self._kept:
            return self._kept.pop(layer)
        h = self._inputs.pop(layer, None)
        if h is None:
            h, self._kept[layer - 1] = self._again(layer - 1, self._inputs.pop(layer - 1))
        return self._again(layer, h)[1]

    def _again(self, layer: int, h: torch.Tensor) -> tuple[torch.Tensor, LayerSaved]:
        return self.layers[layer].forward(h, self.rows, self.attend)
