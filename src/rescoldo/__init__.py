"""rescoldo: LoRA fine-tuning on the CPU you own, restartable at any moment, and honest about its worth."""

from rescoldo.api import Answer, Comparison, Evaluation, Model, compare, evaluate, load, train
from rescoldo.errors import RescoldoError
from rescoldo.version import __version__

__all__ = [
    "Answer",
    "Comparison",
    "Evaluation",
    "Model",
    "RescoldoError",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "train",
]
