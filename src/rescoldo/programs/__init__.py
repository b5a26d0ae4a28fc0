"""DSPy programs over any model: made, kept and asked."""

from __future__ import annotations

import logging
from typing import Any

from rescoldo.extras import missing


def import_dspy() -> Any:
    """The dspy module, without a cache of its own on the disk: what was answered is kept where the work is.

    Raises:
        RescoldoError: it is not installed.
    """
    try:
        import dspy
    except ImportError as error:
        raise missing("dspy", f"DSPy programs need the package dspy: {error}") from None
    logging.getLogger("dspy").setLevel(logging.ERROR)  # an answer that was cut off stands in the result
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    return dspy
