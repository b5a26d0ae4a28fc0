"""Descriptions of the allowed values of settings, the same for flags, config files and the Python API."""

from __future__ import annotations

import math
import shlex

from rescoldo.errors import RescoldoError

SHOWN = 80  # maximum characters of a value that a message repeats


def number(
    *,
    whole: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> str:
    """A description of a range: "a whole number from 1 to 10000". ge, gt, le, lt: its bounds, as in pydantic."""
    kind = "a whole number" if whole else "a number"
    if ge is not None and le is not None:
        return f"{kind} from {_plain(ge)} to {_plain(le)}"
    low = f" of at least {_plain(ge)}" if ge is not None else f" above {_plain(gt)}" if gt is not None else ""
    high = f" at most {_plain(le)}" if le is not None else f" below {_plain(lt)}" if lt is not None else ""
    return f"{kind}{low}{' and' if low and high else ''}{high}"


def refused(value: object, allowed: str, reason: str = "") -> str:
    """The message about an invalid value: "0 is not allowed: use a whole number from 1 to 10000"."""
    if isinstance(value, bool):
        shown = "true" if value else "false"
        reason = reason or "a boolean"
    elif isinstance(value, str):
        shown = value if shlex.quote(value) == value else repr(value)
    else:
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
    if len(shown) > SHOWN:
        shown = shown[: SHOWN - 3] + "…"
    return f"{shown} is not allowed{f' ({reason})' if reason else ''}: use {allowed}"


def check_number(
    flag: str,
    value: float | None,
    *,
    whole: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> None:
    """Check the range of a flag's number; None means that the flag was not given.

    Raises:
        RescoldoError: it is out of range, or not finite.
    """
    if value is None:
        return
    inside = (
        math.isfinite(value)
        and (ge is None or value >= ge)
        and (gt is None or value > gt)
        and (le is None or value <= le)
        and (lt is None or value < lt)
    )
    if not inside:
        raise RescoldoError(f"{flag} {refused(value, number(whole=whole, ge=ge, gt=gt, le=le, lt=lt))}")


def _plain(value: float | None) -> str:
    return f"{value:.0f}" if value is not None and value == int(value) else f"{value:g}"
