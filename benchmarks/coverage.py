"""How often 95 % intervals of a mean difference hold the true mean, and how wide they are, for few examples.

python -m benchmarks.coverage --output benchmarks/out/coverage.json

Differences of two scores, in [-1, 1], are drawn from distributions whose mean is known. `betting` is what rescoldo
reports (rescoldo.evaluation.statistics.mean_interval); the others are what is in common use:
Student's t (scipy.stats.t), the percentile bootstrap (NumPy) and the BCa bootstrap (scipy.stats.bootstrap).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.needs import writable
from rescoldo.evaluation.statistics import CONFIDENCE, mean_interval
from rescoldo.files import write_json

SIZES = (2, 3, 5, 10, 22, 30)
METHODS = ("betting", "t", "percentile", "bca")
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Distribution:
    """Of one difference: how (rows, n) are drawn, and their true mean."""

    name: str
    draw: Draw
    mean: float


def _two(p: float, low: float = 0.0) -> Draw:
    return lambda rng, shape: np.where(rng.random(shape) < p, 1.0, low)


DISTRIBUTIONS = (
    Distribution("all equal, 0.3", lambda rng, shape: np.full(shape, 0.3), 0.3),
    Distribution("0 or 1, half", _two(0.5), 0.5),
    Distribution("0 or 1, 95 % ones", _two(0.95), 0.95),
    Distribution("-1 or 1, 95 % ones", _two(0.95, -1.0), 0.9),
    Distribution("mostly ties: -1, 0, 1", lambda rng, s: rng.choice([-1.0, 0.0, 1.0], s, p=[0.02, 0.9, 0.08]), 0.06),
    Distribution("skewed: Beta(0.5, 5)", lambda rng, shape: rng.beta(0.5, 5.0, shape), 0.5 / 5.5),
    Distribution("skewed down: 1 - 2 Beta(0.2, 2)", lambda rng, s: 1 - 2 * rng.beta(0.2, 2.0, s), 1 - 0.4 / 2.2),
    Distribution("uniform, 0 to 0.4", lambda rng, shape: rng.uniform(0.0, 0.4, shape), 0.2),
    Distribution("sevenths around 0.2", lambda rng, s: (rng.binomial(7, 0.6, s) - rng.binomial(7, 0.4, s)) / 7, 0.2),
)


def intervals(method: str, rows: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """(rows, 2): the interval that a method gives for each of (rows, n) differences; NaN where it gives none."""
    n = rows.shape[1]
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    if method == "betting":
        return np.array([mean_interval(row) for row in rows])
    if method == "t":
        half = stats.t.ppf(tails[1], n - 1) * rows.std(axis=1, ddof=1) / np.sqrt(n)
        return rows.mean(axis=1)[:, None] + np.outer(half, [-1, 1])
    if method == "percentile":
        means = np.stack([row[rng.integers(0, n, (resamples, n))].mean(axis=1) for row in rows])
        return np.quantile(means, tails, axis=1).T
    found = []
    with warnings.catch_warnings():  # degenerate rows have no BCa interval: that is what is measured
        warnings.simplefilter("ignore")
        for row in rows:
            result = stats.bootstrap((row,), np.mean, n_resamples=resamples, method="BCa", rng=rng)
            found.append([result.confidence_interval.low, result.confidence_interval.high])
    return np.array(found)


def measure(sizes: tuple[int, ...], rows: int, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One entry for each distribution, size and method: coverage, mean width, share without an interval or a point."""
    runs = []
    for place, distribution in enumerate(DISTRIBUTIONS):
        for n in sizes:
            drawn = distribution.draw(np.random.default_rng([seed, place, n]), (rows, n))
            for method in METHODS:
                rng = np.random.default_rng([seed, place, n, METHODS.index(method)])
                bounds = intervals(method, drawn, rng, resamples)
                inside = (bounds[:, 0] <= distribution.mean + 1e-9) & (distribution.mean - 1e-9 <= bounds[:, 1])
                width = bounds[:, 1] - bounds[:, 0]
                runs.append(
                    {
                        "distribution": distribution.name,
                        "n": n,
                        "method": method,
                        "coverage": float(inside.mean()),
                        "width": float(np.nanmean(width)) if np.isfinite(width).any() else None,
                        "degenerate": float((~(width > 1e-9)).mean()),
                    }
                )
    return runs


def summary(runs: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[list[str]]:
    """One row a method and size: the least coverage over the distributions and where it is, the mean width."""
    rows = []
    for method in METHODS:
        for n in sizes:
            own = [run for run in runs if run["method"] == method and run["n"] == n]
            worst = min(own, key=lambda run: float(run["coverage"]))
            widths = [run["width"] for run in own if run["width"] is not None]
            wide = f"{np.mean(widths):.2f}" if widths else "-"
            rows.append([method, str(n), f"{worst['coverage']:.1%}", worst["distribution"], wide])
    return rows


def main() -> None:
    """Run the simulation and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="data sets drawn for each distribution and size")
    parser.add_argument("--resamples", type=int, default=999, help="of the bootstraps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 data sets of 3 and 10 examples, 99 resamples")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    writable(args.output)
    sizes = (3, 10) if args.quick else SIZES
    rows, resamples = (20, 99) if args.quick else (args.rows, args.resamples)
    runs = measure(sizes, rows, resamples, args.seed)
    write_json(args.output, {"confidence": CONFIDENCE, "rows": rows, "resamples": resamples, "runs": runs})
    table = Table(title=f"95 % intervals over {len(DISTRIBUTIONS)} distributions, {rows} data sets each")
    for column in ("method", "n", "least coverage", "where", "mean width"):
        table.add_column(column)
    for row in summary(runs, sizes):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
