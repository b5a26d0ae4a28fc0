"""rescoldo: LoRA fine-tuning on your own CPU, restartable at any time, with an honest evaluation."""

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

# The kernels have their own threads, so torch's OpenMP threads must sleep between operations instead of spinning
# against them. torch reads this when it is loaded.
for _name, _value in (("OMP_WAIT_POLICY", "passive"), ("KMP_BLOCKTIME", "0")):
    os.environ.setdefault(_name, _value)
