"""rescoldo: LoRA fine-tuning on the CPU you own, restartable at any moment, and honest about its worth."""

__version__ = "0.1.0"
