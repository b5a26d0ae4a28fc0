"""The adapter on disk: PEFT's config and weights, the calibration beside them, and whether it fits a base model."""

from rescoldo.adapter.files import (
    BIN_FILE,
    CALIBRATION_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    read_adapter,
    read_calibration,
    to_peft,
    write_adapter,
    write_bin,
    write_calibration,
)
from rescoldo.adapter.peft import peft_config

__all__ = [
    "BIN_FILE",
    "CALIBRATION_FILE",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Adapter",
    "peft_config",
    "read_adapter",
    "read_calibration",
    "to_peft",
    "write_adapter",
    "write_bin",
    "write_calibration",
]
