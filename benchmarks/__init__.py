"""Measurements of this project against others and against itself."""

import rescoldo  # noqa: F401  # before torch: what it sets for OpenMP's threads is read when torch is loaded
