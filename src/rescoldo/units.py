"""Figures as people read them."""

from __future__ import annotations


def gigabytes(count: float) -> str:
    """Bytes as "7.3 GB" (10⁹)."""
    return f"{count / 1e9:.1f} GB"
