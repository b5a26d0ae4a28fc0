r"""How soon a recipe reaches the validation loss of transformers + PEFT: examples, tokens and time.

python -m benchmarks.speedrun --output benchmarks/out/speedrun.json
echo "task=tickets seed=1 lr=2e-3 step=1 epochs=1" > one.txt
python -m benchmarks.speedrun --trials one.txt --rounds 1 --output benchmarks/out/one.json

--trials is a text file with one trial a line (settings: benchmarks/trial.py; # begins a comment), read again after
each trial. A trial whose settings are the reference's but for rate, epochs and seed (PEFT's defaults, 8 examples a
step, cosine) is part of the reference's sweep: the one with the lowest loss sets the target. Trials go to OUTPUT with
the ending .jsonl one by one; the same command resumes where it was interrupted. Losses do not depend on a machine's
load. What a step costs is measured last, this engine and PEFT in turns (benchmarks.costs), for each class of CPU that
--cpus names: run that part on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.costs import here, of_class
from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.trial import Trial, run
from rescoldo.evaluation.statistics import wilcoxon
from rescoldo.files import write_json
from rescoldo.system.cgroup import available_threads

TRIALS = Path(__file__).with_suffix(".txt")
ANY = ("seed", "points")  # trials that differ in these alone are one recipe
SWEPT = ("task", "engine", "precision", "lr", "epochs")  # what the reference's trials may differ in
PEERS = ("bf16", "fp32")
RESAMPLES = 10_000


def read_trials(path: Path) -> list[Trial]:
    """The trials of a file.

    Raises:
        SystemExit: it cannot be read, or a line is no trial.
    """
    trials = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                trials.append(Trial.parse(text))
            except (TypeError, ValueError) as error:
                raise SystemExit(f"error: {path}:{number}: {error}") from error
    return trials


def read_results(path: Path) -> list[dict[str, Any]]:
    """What has been measured; a line that was cut off when the process was killed is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def recipe(trial: dict[str, Any]) -> str:
    """A trial's settings in words, without those of the reference, seed and points."""
    plain = Trial(trial["task"]).key()
    changed = {name: value for name, value in trial.items() if name not in (*ANY, "task")}
    shown = {name: value for name, value in changed.items() if value != plain[name] or name in ("lr", "step", "epochs")}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()
    )


def is_reference(trial: dict[str, Any]) -> bool:
    """Whether a trial belongs to the reference's sweep."""
    plain = Trial(trial["task"]).key()
    return all(trial[name] == plain[name] for name in plain if name not in (*ANY, *SWEPT))


def rows(results: list[dict[str, Any]], spent: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each task and recipe, the reference's best first within its task.

    Each has the mean validation loss at the end and its values by seed; the difference to the reference by validation
    example (nats a token, averaged over the seeds) with a bootstrap interval and Wilcoxon's test; examples until the
    target (the reference's loss) is reached, None where it is not; and for each class of CPU in `spent` how many times
    as fast as the reference in PEFT that is, by wall-clock and CPU time of training steps.

    Args:
        spent: task → class of CPU → what an example costs (`benchmarks.costs.measure`).
    """
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        grouped.setdefault((result["trial"]["task"], recipe(result["trial"])), []).append(result)
    made: list[dict[str, Any]] = []
    for (task, name), trials in grouped.items():
        by_seed = [trial["points"][-1]["val_loss"] for trial in trials]
        made.append(
            {
                "task": task,
                "recipe": name,
                "reference": is_reference(trials[0]["trial"]),
                "val_loss": statistics.mean(by_seed),
                "by_seed": {trial["trial"]["seed"]: loss for trial, loss in zip(trials, by_seed, strict=True)},
                "step": trials[0]["trial"]["step"],
                "engine": trials[0]["trial"]["engine"],
                "points": _mean_points(trials),
                "losses": np.mean([_by_example(trial["points"][-1]) for trial in trials], axis=0),
            }
        )
    for task in dict.fromkeys(row["task"] for row in made):
        of_task = [row for row in made if row["task"] == task]
        references = [row for row in of_task if row["reference"]]
        # trained in this engine, whose loss curve is PEFT's, where there is such a one: PEFT's own runs are fewer
        swept = [row for row in references if row["engine"] != "peft"] or references
        best = min(swept, key=partial(_on_common_seeds, swept), default=None)
        for row in of_task:
            row["best_reference"] = row is best
            _against(row, best, spent.get(task, {}))
    for row in made:
        del row["losses"]
    return sorted(made, key=lambda row: (row["task"], not row["best_reference"], row["val_loss"]))


def _on_common_seeds(swept: list[dict[str, Any]], row: dict[str, Any]) -> float:
    """The row's mean loss on the seeds that all of the sweep have, on all of its own where there is no such seed."""
    common = set.intersection(*(set(one["by_seed"]) for one in swept)) or set(row["by_seed"])
    return statistics.mean(loss for seed, loss in row["by_seed"].items() if seed in common)


def _mean_points(trials: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The points that all seeds have, with the mean loss."""
    by_examples = [{point["examples"]: point for point in trial["points"]} for trial in trials]
    common = sorted(set.intersection(*map(set, by_examples)))
    return [
        {
            "examples": n,
            "tokens": statistics.mean(points[n]["tokens"] for points in by_examples),
            "val_loss": statistics.mean(points[n]["val_loss"] for points in by_examples),
        }
        for n in common
    ]


def _by_example(point: dict[str, Any]) -> np.ndarray:
    """(n,) nats a token of each validation example."""
    return np.array([nats / n for nats, n in point["val"]])


def _against(row: dict[str, Any], best: dict[str, Any] | None, spent: dict[str, Any]) -> None:
    """Add what follows from the reference's best."""
    if best is None:
        return
    if row is not best:
        differences = row["losses"] - best["losses"]
        drawn = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
        low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
        row["difference"] = {"mean": float(differences.mean()), "interval_95": [float(low), float(high)]}
        row["difference"] |= {"better": int((differences < 0).sum()), "n": len(differences)}
        row["difference"]["p"] = wilcoxon(differences)["p_value"]
    reached = [point for point in row["points"] if point["val_loss"] <= best["val_loss"]]
    row["examples_to_target"] = reached[0]["examples"] if reached else None
    row["tokens_to_target"] = reached[0]["tokens"] if reached else None
    row["times_as_fast"] = {}
    for name, costs in spent.items():
        ours = costs.get(f"rescoldo int8, {row['step']}")
        if not reached or not ours or row["engine"] == "peft":
            continue
        row["times_as_fast"][name] = {}
        for kind in ("seconds", "cpu_seconds"):
            peer = min(statistics.median(c[kind]) for side, c in costs.items() if side.startswith("peft"))
            theirs = best["points"][-1]["examples"] * peer
            row["times_as_fast"][name][kind] = theirs / (reached[0]["examples"] * statistics.median(ours[kind]))


def show(document: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    for task, of_task in document["an_example"].items():
        for name, costs in of_task.items():
            text = ", ".join(f"{side}: {statistics.median(c['seconds']):.2f}" for side, c in costs.items())
            console.print(f"{task}, {name}: seconds an example, in turns: {text}")
    classes = list(dict.fromkeys(name for of_task in document["an_example"].values() for name in of_task))
    table = Table(title="until the reference's validation loss; times PEFT's speed by wall-clock of training steps")
    columns = ["task", "recipe", "seeds", "validation loss", "difference (95 %)", "better", "examples", *classes]
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "recipe") else "right")
    for row in document["rows"]:
        difference = row.get("difference")
        interval = (
            f"{difference['mean']:+.4f} ({difference['interval_95'][0]:+.4f} to {difference['interval_95'][1]:+.4f})"
            if difference
            else "-"
        )
        times = row.get("times_as_fast", {})
        table.add_row(
            row["task"],
            row["recipe"] + (" (target)" if row["best_reference"] else ""),
            str(len(row["by_seed"])),
            f"{row['val_loss']:.4f}",
            interval,
            f"{difference['better']} of {difference['n']}" if difference else "-",
            str(row.get("examples_to_target") or "-"),
            *(f"{times[name]['seconds']:.1f}" if name in times else "-" for name in classes),
        )
    console.print(table)


def _cpus(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in here():
            raise argparse.ArgumentTypeError(f"{name!r}: one of {', '.join(here())} was expected")
    return names


def main() -> None:
    """Run the trials that are missing, measure what steps cost, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=Path, default=TRIALS, help=f"default: benchmarks/{TRIALS.name}")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--cpus", type=_cpus, default=None, help="classes of CPU, with commas (default: this one's)")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring a step; 0: not at all, without PEFT")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    log, folder = args.output.with_suffix(".jsonl"), args.output.parent
    for path in (args.output, log):
        writable(path)
    trials = read_trials(args.trials)
    if args.rounds or any(trial.engine == "peft" for trial in trials):
        require("peft")
    torch.set_num_threads(args.threads)
    while waiting := [
        one for one in read_trials(args.trials) if one.key() not in [r["trial"] for r in read_results(log)]
    ]:
        print(f"{waiting[0].task}: {recipe(waiting[0].key())} seed={waiting[0].seed}", flush=True)
        result = run(waiting[0], folder, lambda text: print("  " + text, flush=True))
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())
    trials = read_trials(args.trials)
    results = [result for result in read_results(log) if result["trial"] in [trial.key() for trial in trials]]
    document = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    spent = document.get("an_example", {})
    for task in dict.fromkeys(trial.task for trial in trials) if args.rounds else ():
        sizes = sorted({trial.step for trial in trials if trial.task == task})
        for name in args.cpus or here()[:1]:
            if not {f"rescoldo int8, {size}" for size in sizes} <= set(spent.get(task, {}).get(name, {})):
                own = args.output.with_suffix(f".{task}.{name}.json")
                spent.setdefault(task, {})[name] = of_class(name, task, sizes, args.rounds, args.threads, own)
                write_json(args.output, {"machine": describe(args.threads), "an_example": spent})
    document = {"machine": describe(args.threads), "an_example": spent, "rows": rows(results, spent)}
    write_json(args.output, document)
    show(document)


if __name__ == "__main__":
    main()
