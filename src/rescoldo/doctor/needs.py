"""The disk space of a run, computed from its settings and the model's shapes."""

from __future__ import annotations

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.memory import adapter_parameters, trained_parameters
from rescoldo.engine.types import LoraConfig

OTHER_FILES = 30_000_000  # tokenizer, logs, metrics, report


def checkpoint_bytes(decoder: DecoderConfig, lora: LoraConfig, *, unfinished: bool = False) -> int:
    """Bytes of a checkpoint: weights, those of the best epoch, two moments; the gradients too of an unfinished step."""
    of_trained = 3 if unfinished else 2
    return 4 * (2 * adapter_parameters(decoder, lora) + of_trained * trained_parameters(decoder, lora))


def disk_need(decoder: DecoderConfig, lora: LoraConfig, epochs: int, keep: int) -> int:
    """The maximum bytes of a run's output: a checkpoint for each epoch, `keep` in between, and one being written."""
    adapter = 4 * adapter_parameters(decoder, lora)
    prefix = 8 * decoder.kv_width * 512  # gradients of a shared prefix
    between = checkpoint_bytes(decoder, lora, unfinished=True) + prefix
    return checkpoint_bytes(decoder, lora) * epochs + between * (keep + 1) + 2 * adapter + OTHER_FILES
