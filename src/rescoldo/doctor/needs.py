"""The disk space of a run, computed from its settings and the model's shapes."""

from __future__ import annotations

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.memory import adapter_parameters
from rescoldo.engine.types import LoraConfig

ADAPTERS_IN_CHECKPOINT = 4  # weights, two moments, best epoch
ADAPTERS_BETWEEN = 5  # and the gradients of an unfinished step
OTHER_FILES = 30_000_000  # tokenizer, logs, metrics, report


def disk_need(decoder: DecoderConfig, lora: LoraConfig, epochs: int, keep: int) -> int:
    """The maximum bytes of a run's output: a checkpoint for each epoch, `keep` in between, and one being written."""
    adapter = 4 * adapter_parameters(decoder, lora)
    prefix = 8 * decoder.kv_width * 512  # gradients of a shared prefix
    between = ADAPTERS_BETWEEN * adapter + prefix
    return ADAPTERS_IN_CHECKPOINT * adapter * epochs + between * (keep + 1) + 2 * adapter + OTHER_FILES
