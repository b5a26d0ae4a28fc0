"""Many runs on one base: which settings are best, by the role's metric, and what they cost."""

from __future__ import annotations

from rescoldo.sweep.run import SweepResult, sweep
from rescoldo.sweep.space import Choice, Range, Space, read_space

__all__ = ["Choice", "Range", "Space", "SweepResult", "read_space", "sweep"]
