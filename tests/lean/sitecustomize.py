"""For the processes that tests start, see tests/conftest.py: mistral_common cannot be imported, as where it is not
installed."""

import sys

sys.modules["mistral_common"] = None  # type: ignore[assignment]
