"""Figures as people read them."""

from __future__ import annotations


def gigabytes(count: float) -> str:
    """Bytes as "7.3 GB" (10⁹)."""
    return f"{count / 1e9:.1f} GB"


def size(count: float) -> str:
    """Bytes as "7.3 GB", or as "24 MB" where that says more."""
    return gigabytes(count) if count >= 1e9 else f"{count / 1e6:.0f} MB"


def clock(seconds: float) -> str:
    """3725 → 1:02:05."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
