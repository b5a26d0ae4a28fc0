"""Shared by all tests. That this file exists in a package is what makes `from tests.base.make_models import …` work."""

from __future__ import annotations

import os
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="rescoldo-tests-state-")  # no test's run in the user's list

# A shell's background jobs inherit Ctrl-C as ignored, and so would the processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
