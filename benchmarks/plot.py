"""A benchmark's figures as a picture beside its JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def bars(output: Path, title: str, unit: str, values: Mapping[str, float]) -> Path:
    """Horizontal bars with their values, written as `output` with the ending .svg; returns that path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.8 + 0.45 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    names = list(values)[::-1]
    drawn = axes.barh(names, [values[name] for name in names], color="#c2571a")
    axes.bar_label(drawn, fmt="{:.3g}", padding=4)
    axes.set_title(title, loc="left")
    axes.set_xlabel(unit)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    path = output.with_suffix(".svg")
    figure.savefig(path, metadata={"Date": None})
    return path
