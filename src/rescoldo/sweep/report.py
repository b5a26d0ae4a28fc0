"""A sweep's results: the table, in Markdown and on the terminal, and the plot of score against cost."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescoldo.files import write_atomic, write_text
from rescoldo.run.sweep import of_status

if TYPE_CHECKING:
    from rich.console import Console

Trial = Mapping[str, Any]


def best_trials(trials: Sequence[Trial]) -> dict[str, Any]:
    """Names of the best trials.

    Returns:
        by_score (for equal scores the lower loss, then the cheaper one), by_loss; None if no trial has finished; and
        front: the Pareto front, trials for which no cheaper one (in seconds of training) has at least their score,
        cheapest first.
    """
    done = of_status(trials, "finished")
    if not done:
        return {"by_score": None, "by_loss": None, "front": []}
    front: list[Trial] = []
    for trial in sorted(done, key=lambda trial: (trial["seconds"], -trial["score"])):
        if not front or trial["score"] > front[-1]["score"]:
            front.append(trial)
    return {
        "by_score": min(done, key=lambda trial: (-trial["score"], trial["val_loss"], trial["seconds"]))["name"],
        "by_loss": min(done, key=lambda trial: trial["val_loss"])["name"],
        "front": [trial["name"] for trial in front],
    }


def rows(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: the best score first, failed and unfinished trials last."""
    fields = list(document["space"])
    best = document["best"]
    trials = sorted(document["trials"], key=lambda trial: (-trial.get("score", -1.0), trial.get("val_loss", 0.0)))
    table, finished = [], of_status(trials, "finished")
    for trial in trials:
        marks = [
            word
            for word, name in (("best", best["by_score"]), ("lowest loss", best["by_loss"]))
            if name == trial["name"]
        ]
        marks += ["front"] if trial["name"] in best["front"] else []
        table.append(
            [
                trial["name"],
                *(_shown(trial["params"].get(field)) for field in fields),
                f"{trial['score']:.1%}" if trial in finished else trial["status"],
                f"{trial['val_loss']:.4f}" if "val_loss" in trial else "–",
                f"{trial['seconds']:.0f}" if "seconds" in trial else "–",
                f"{trial['trainable_params']:,}" if "trainable_params" in trial else "–",
                ", ".join(marks),
            ]
        )
    return ["trial", *fields, "score", "loss", "seconds", "parameters", ""], table


def write_report(document: Mapping[str, Any], output: Path) -> None:
    """Write sweep.md and, if matplotlib is installed and a trial has finished, sweep.png.

    Raises:
        OSError: from the system.
    """
    head, table = rows(document)
    lines = ["# Sweep", "", *sentences(document), "", _line(head), _line(["---"] * len(head))]
    lines += [_line([cell.replace("|", "\\|") for cell in row]) for row in table]
    failed = of_status(document["trials"], "failed")
    lines += ["", *(f"- {trial['name']}: {trial['error'].splitlines()[0]}" for trial in failed)]
    if document["best"]["by_score"]:
        with contextlib.suppress(ImportError):
            plot(document, output / "sweep.png")
            lines += ["", "![score against cost](sweep.png)"]
    write_text(output / "sweep.md", "\n".join(lines) + "\n")


def sentences(document: Mapping[str, Any]) -> list[str]:
    """The results as sentences."""
    best, trials = document["best"], {trial["name"]: trial for trial in document["trials"]}
    if not best["by_score"]:
        return ["No trial is finished."]
    first, lowest = trials[best["by_score"]], trials[best["by_loss"]]
    said = [
        f"Best by the metric: {first['name']}, {first['score']:.1%} after {first['seconds']:.0f} s ({_values(first)})."
    ]
    if lowest is not first:
        said.append(
            f"The lowest validation loss has another, {lowest['name']} ({lowest['val_loss']:.4f}, score "
            f"{lowest['score']:.1%}): the loss alone would have chosen it."
        )
    cheap = trials[best["front"][0]]
    if cheap is not first:
        said.append(f"The cheapest: {cheap['name']}, {cheap['score']:.1%} after {cheap['seconds']:.0f} s.")
    return said


def print_sweep(document: Mapping[str, Any], console: Console) -> None:
    """Print the table and the results."""
    from rich.table import Table

    head, table = rows(document)
    shown = Table()
    for name in head:
        shown.add_column(name, overflow="fold", no_wrap=name in ("trial", "parameters"))
    for row in table:
        shown.add_row(*row)
    console.print(shown, markup=False)
    for sentence in sentences(document):
        console.print(sentence, markup=False, highlight=False)


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Plot the score against training time: each trial, the front, the best by score and by loss.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    best = document["best"]
    done = {trial["name"]: trial for trial in of_status(document["trials"], "finished")}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    front = [done[name] for name in best["front"]]
    if len(front) > 1:
        axes.plot(*_points(front), color="0.7", zorder=1, label="nothing better for less")
    axes.scatter(*_points(done.values()), color="tab:blue", zorder=2)
    axes.scatter(*_points([done[best["by_score"]]]), s=160, color="tab:orange", zorder=1.5, label="best score")
    axes.scatter(
        *_points([done[best["by_loss"]]]), s=220, facecolors="none", edgecolors="tab:green", label="lowest loss"
    )
    for k, (name, trial) in enumerate(sorted(done.items(), key=lambda item: item[1]["seconds"])):
        label, above = name.removeprefix("trial-").lstrip("0"), k % 2 == 0  # in turn, so that labels do not overlap
        point = trial["seconds"], 100 * trial["score"]
        axes.annotate(
            label,
            point,
            (0, 8 if above else -8),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="bottom" if above else "top",
        )
    axes.set_xlabel("training, seconds")
    axes.set_ylabel("score, %")
    scores = [100 * trial["score"] for trial in done.values()]
    room = max(2.0, 0.1 * (max(scores) - min(scores)))
    axes.set_ylim(max(min(scores) - room, -0.5 * room), max(scores) + room)
    axes.set_xlim(0, 1.15 * max(trial["seconds"] for trial in done.values()) or 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)

    def write(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})

    write_atomic(path, write)


def _points(trials: Any) -> tuple[list[float], list[float]]:
    found = list(trials)
    return [trial["seconds"] for trial in found], [100 * trial["score"] for trial in found]


def _values(trial: Trial) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in trial["params"].items())


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
