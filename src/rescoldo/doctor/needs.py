"""What a run will take of disk space, computed from its settings and the model's shapes."""

from __future__ import annotations

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.memory import adapter_parameters, trained_parameters
from rescoldo.engine.types import LoraConfig

OTHER_FILES = 30_000_000  # tokenizer, logs, metrics, report


def checkpoint_bytes(decoder: DecoderConfig, lora: LoraConfig, *, half_done: bool = False) -> int:
    """Bytes of a checkpoint: weights and those of the best epoch, two moments, of a half-done step the gradients."""
    of_trained = 3 if half_done else 2
    return 4 * (2 * adapter_parameters(decoder, lora) + of_trained * trained_parameters(decoder, lora))


def disk_need(decoder: DecoderConfig, lora: LoraConfig, epochs: int, keep: int) -> int:
    """Bytes that a run's output takes at its largest: one checkpoint an epoch, `keep` between, one being written."""
    adapter = 4 * adapter_parameters(decoder, lora)
    prefix = 8 * decoder.kv_width * 512  # gradients of a shared beginning
    between = checkpoint_bytes(decoder, lora, half_done=True) + prefix
    return checkpoint_bytes(decoder, lora) * epochs + between * (keep + 1) + 2 * adapter + OTHER_FILES
