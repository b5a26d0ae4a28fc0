"""DSPy programs over any model: created, saved, loaded and run."""

from __future__ import annotations

import logging
from typing import Any

from rescoldo.extras import missing


def import_dspy() -> Any:
    """The dspy module, with its own disk cache disabled, because answers are cached with each output.

    Raises:
        RescoldoError: it is not installed.
    """
    try:
        import dspy
    except ImportError as error:
        raise missing("dspy", f"DSPy programs need the package dspy: {error}") from None
    logging.getLogger("dspy").setLevel(logging.ERROR)  # its warnings about truncated answers are part of our results
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    return dspy
