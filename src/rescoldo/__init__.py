"""rescoldo: LoRA fine-tuning on the CPU you own, restartable at any moment, and honest about its worth."""

from rescoldo.version import __version__

__all__ = ["__version__"]
