"""The model, forward and backward."""

import os

# Activations come and go in tens of megabytes: in small pages the system spends longer making them than some kernels take.
# torch reads this at its first large allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
