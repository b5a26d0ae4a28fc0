"""The decoder: forward pass, backward pass, decoding, precisions, kernels."""

import os

# Activations are allocated and freed in tens of megabytes, for which mapping 4 KB pages takes longer than some kernels
# run. torch reads this at its first large allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
