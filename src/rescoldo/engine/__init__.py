"""The model, forward and backward."""

import os

# Activations come and go in tens of megabytes: the system takes longer to make small pages for them than some kernels
# run. torch reads this at its first large allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
