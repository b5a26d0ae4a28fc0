"""rescoldo: LoRA fine-tuning on the CPU you own, restartable at any moment, and honest about its worth."""

import os

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

# The kernels have threads of their own: those of torch's OpenMP are to sleep between its operations, not to spin
# against them. Read when torch is loaded.
for _name, _value in (("OMP_WAIT_POLICY", "passive"), ("KMP_BLOCKTIME", "0")):
    os.environ.setdefault(_name, _value)
