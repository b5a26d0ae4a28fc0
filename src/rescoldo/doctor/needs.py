"""What a run will take of memory and disk, computed from its settings and the model's shapes."""

from __future__ import annotations

from dataclasses import dataclass

from rescoldo.engine.auto import kept_bytes, weight_bytes
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.types import CALIBRATED, LoraConfig

PROCESS = 520_000_000  # bytes: Python, torch, tokenizer and what they load, before any weight
ADAPTERS_IN_MEMORY = 7  # weights, gradients, two moments, best epoch; and a checkpoint's copies while it is written
ADAPTERS_IN_CHECKPOINT = 4  # weights, two moments, best epoch
ADAPTERS_BETWEEN = 5  # and the gradients of a half-done step
OTHER_FILES = 30_000_000  # tokenizer, logs, metrics, report
HEAD_ROWS = 256  # rows of logits at a time (engine.model)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of resident memory at the peak.

    Attributes:
        weights: the frozen model in its precision, embeddings included.
        adapter: the adapter, its gradients and optimizer.
        layer_activations: what one layer keeps for its way back.
        other: the process itself, logits, one layer's work.
        n_layers: layers whose activations would be kept at best.
    """

    weights: int
    adapter: int
    layer_activations: int
    other: int
    n_layers: int

    @property
    def least(self) -> int:
        """With no layer's activations kept: slower by about a third, never killed for them."""
        return self.weights + self.adapter + self.other

    @property
    def full(self) -> int:
        """With all layers' activations kept."""
        return self.least + self.n_layers * self.layer_activations

    def peak(self, free: int) -> int:
        """What it will come to where `free` bytes are free: as many layers as fit are kept."""
        return max(self.least, min(self.full, int(0.9 * free)))


def adapter_parameters(decoder: DecoderConfig, lora: LoraConfig) -> int:
    """Trained parameters."""
    return decoder.n_layers * lora.rank * sum(sum(decoder.linear_shape(name)) for name in lora.targets)


def memory_need(
    decoder: DecoderConfig, precision: str, lora: LoraConfig, rows: int, stored: int | None = None
) -> MemoryNeed:
    """What training takes at its peak.

    Args:
        decoder: the model's shapes.
        precision: of the frozen weights.
        lora: the adapter.
        rows: tokens of the largest micro-batch.
        stored: bytes of the linears' blocks in the file (BaseModel.stored_bytes).
    """
    wide = 4 if precision == "fp32" else 2
    largest = max(out * into for out, into in map(decoder.linear_shape, decoder.linears))
    converted = 2 * largest if precision in CALIBRATED else 0
    inputs = decoder.n_layers * rows * decoder.hidden_size * 2  # float32, of every second layer
    work = 5 * kept_bytes(decoder, wide, rows) + HEAD_ROWS * decoder.vocab_size * (wide + 4)
    return MemoryNeed(
        weights=weight_bytes(decoder, precision, stored),
        adapter=4 * ADAPTERS_IN_MEMORY * adapter_parameters(decoder, lora),
        layer_activations=kept_bytes(decoder, wide, rows),
        other=PROCESS + converted + work + inputs,
        n_layers=decoder.n_layers,
    )


def disk_need(decoder: DecoderConfig, lora: LoraConfig, epochs: int, keep: int) -> int:
    """Bytes that a run's output takes at its largest: one checkpoint an epoch, `keep` between, one being written."""
    adapter = 4 * adapter_parameters(decoder, lora)
    prefix = 8 * decoder.n_layers * decoder.n_kv_heads * decoder.head_dim * 512  # gradients of a shared beginning
    between = ADAPTERS_BETWEEN * adapter + prefix
    return ADAPTERS_IN_CHECKPOINT * adapter * epochs + between * (keep + 1) + 2 * adapter + OTHER_FILES
