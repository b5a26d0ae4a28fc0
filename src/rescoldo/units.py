"""Formatting of numbers for people."""

from __future__ import annotations

import time
from datetime import datetime


def gigabytes(count: float) -> str:
    """Bytes as "7.3 GB" (10⁹)."""
    return f"{count / 1e9:.1f} GB"


def size(count: float) -> str:
    """Bytes as "7.3 GB", or as "24 MB" below one GB."""
    return gigabytes(count) if count >= 1e9 else f"{count / 1e6:.0f} MB"


def count(number: int, noun: str, plural: str = "") -> str:
    """3, "step" → "3 steps"; 1, "step" → "1 step"; 0, "entry", "entries" → "0 entries"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def when(moment: float | str) -> str:
    """A time, in seconds since the epoch or as ISO 8601, in this machine's time zone: "2026-01-31 14:05".

    A text that is not a date is returned unchanged.
    """
    try:
        seconds = datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else moment
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return str(moment)


def clock(seconds: float) -> str:
    """3725 → 1:02:05."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
