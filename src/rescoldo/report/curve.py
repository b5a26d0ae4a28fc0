"""Charts of curves: coordinates for an SVG, and characters for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 250, 66, 10, 12, 30
MOST_POINTS = 400  # maximum per curve, which limits the page's size


@dataclass(frozen=True)
class Series:
    """One line of a chart. `mark` is its character on a terminal, `name` its CSS class and legend."""

    name: str
    points: Points
    mark: str = "·"


@dataclass(frozen=True)
class Chart:
    """The content of the page's SVG: polylines in its coordinates, and ticks as (position, text)."""

    title: str
    lines: list[tuple[str, str, list[tuple[float, float]]]]  # name, "x,y x,y …", isolated points to draw as dots
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def thin(points: Points) -> Points:
    """At most MOST_POINTS of the points, including the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(i * step)] for i in range(MOST_POINTS)]


def bounds(series: Sequence[Series]) -> tuple[float, float, float, float] | None:
    """(min x, max x, min y, max y) over all points; max > min in each pair. None without points.

    The y axis has a margin on both sides, but does not go below 0 unless a value does: a loss is never negative.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    left, right = min(xs), max(xs)
    bottom = max(0.0, low - margin) if low >= 0 else low - margin
    return left, right if right > left else left + 1, bottom, high + margin


def svg_chart(title: str, series: Sequence[Series]) -> Chart | None:
    """The chart of these series, None if there is nothing to draw."""
    box = bounds(series)
    if box is None:
        return None
    left, right, low, high = box

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for one in series:
        placed = [place(x, y) for x, y in thin(one.points)]
        text = " ".join(f"{x},{y}" for x, y in placed)
        lines.append((one.name, text, placed if len(placed) <= 20 else []))
    xs = sorted({round(left + (right - left) * share) for share in (0, 0.5, 1)})
    ys = [low + (high - low) * share for share in (0.05, 0.5, 0.95)]
    return Chart(
        title,
        lines,
        [(place(x, low)[0], f"{x}") for x in xs if left <= x <= right],
        [(place(left, y)[1], _short(y)) for y in ys],
    )


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if value and abs(value) < 0.001 else f"{value:.3g}"


def text_chart(series: Sequence[Series], width: int, height: int) -> list[str]:
    """The chart in characters: `height` lines of at most `width` characters, values on the left, steps below.

    Later series are drawn over earlier ones. Without points: one line that says so.
    """
    box = bounds(series)
    if box is None:
        return ["(no loss yet)"]
    left, right, low, high = box
    labels = [_short(high), _short((low + high) / 2), _short(low)]
    room = max(map(len, labels)) + 1
    columns, rows = max(10, width - room - 1), max(3, height - 1)
    grid = [[" "] * columns for _ in range(rows)]
    for one in series:
        for x, y in one.points:
            column = round((x - left) / (right - left) * (columns - 1))
            grid[round((high - y) / (high - low) * (rows - 1))][column] = one.mark
    at = {0: labels[0], rows // 2: labels[1], rows - 1: labels[2]}
    lines = [f"{at.get(i, ''):>{room}}│{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    first, last = f"step {left:.0f}", f"{right:.0f}"
    return [*lines, " " * (room + 1) + first + last.rjust(columns - len(first))]
