"""Sweeps: many runs on one base model, to find the best settings by the role's metric, and their cost."""

from __future__ import annotations

from rescoldo.sweep.run import SweepResult, sweep
from rescoldo.sweep.space import Choice, Range, Space, read_space

__all__ = ["Choice", "Range", "Space", "SweepResult", "read_space", "sweep"]
