"""The benchmarks run and write what they promise; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_training_against_peft(tmp_path: Path) -> None:
    output = tmp_path / "training.json"
    command = [sys.executable, "-m", "benchmarks.training", "--rounds", "1", "--examples", "1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert document["workload"] == "smollm2"
    assert document["runs"][0]["rescoldo"]["seconds"] > 0
    assert document["ratio"]["min"] <= document["ratio"]["median"] <= document["ratio"]["max"]
    assert document["peak_memory_bytes"].keys() == {"rescoldo", "peft"}
    a, b = (document["runs"][0][side]["loss"] for side in ("rescoldo", "peft"))
    assert a == pytest.approx(b, rel=0.05)  # the same examples, the same model, int8 against bf16


@pytest.mark.slow
def test_scaling_on_paper(tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    command = [sys.executable, "-m", "benchmarks.scaling", "--only", "paper", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert all(row["2"]["speedup"] < 2 for row in document["paper"]["rows"])


def test_coverage_of_intervals(tmp_path: Path) -> None:
    output = tmp_path / "coverage.json"
    command = [sys.executable, "-m", "benchmarks.coverage", "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(output.read_text())["runs"]
    ours = [run for run in runs if run["method"] == "betting"]
    assert all(run["coverage"] >= 0.9 and run["degenerate"] == 0 for run in ours)
    theirs = [run for run in runs if run["method"] == "percentile" and run["distribution"] == "0 or 1, 95 % ones"]
    assert max(run["coverage"] for run in theirs) < 0.9, "what the table is about"
