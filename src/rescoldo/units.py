"""Figures as people read them."""

from __future__ import annotations


def gigabytes(count: float) -> str:
    """Bytes as "7.3 GB" (10⁹)."""
    return f"{count / 1e9:.1f} GB"


def clock(seconds: float) -> str:
    """3725 → 1:02:05."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
