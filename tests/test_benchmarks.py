"""The benchmarks run and write what they promise; their figures are not judged here."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from benchmarks import kernels, models, needs

BENCHMARKS = Path(needs.__file__).parent
# those that are run by themselves, not by another one
PROGRAMS = sorted(
    path.stem
    for path in BENCHMARKS.glob("*.py")
    if path.stem != "worker" and 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def _imports(module: str, seen: set[str]) -> set[str]:
    """Packages that a benchmark, what it imports of the others, and the programs in their texts import anywhere."""
    if module in seen:
        return set()
    seen.add(module)
    text = (BENCHMARKS / f"{module}.py").read_text(encoding="utf-8")
    found: set[str] = {"xllamacpp"} if "import signal, sys, xllamacpp" in text else set()
    if "benchmarks.worker" in text and module != "worker":
        found |= _imports("worker", seen)
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            first, _, rest = name.partition(".")
            if first == "benchmarks" and rest:
                found |= _imports(rest, seen)
            found.add(first)
    return found


def _base() -> set[str]:
    """Packages that rescoldo depends on, by the names that they are imported by."""
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.split(r"[><=\[]", text)[0].replace("-", "_") for text in project["dependencies"]}


def test_benchmarks_import_what_they_can_name() -> None:
    """Whatever is not rescoldo's own dependency has an entry in the table of packages."""
    known = {*sys.stdlib_module_names, *needs.PACKAGES, *_base(), "rescoldo", "benchmarks"}
    for module in PROGRAMS:
        assert _imports(module, set()) <= known, module


class _MeasuredError(Exception):
    pass


def _measured(*_: Any, **__: Any) -> Any:
    raise _MeasuredError


MISSING = [
    ("training", "matplotlib", ()),
    ("training", "peft", ()),
    ("training", "mistral_common", ("--workload", "mistral7b", "--layers", "1", "--no-peer")),
    ("training", "mistral_common", ("--workload", "mistral7b", "--base-model", "{}/mistral.gguf")),
    ("memory", "matplotlib", ()),
    ("memory", "peft", ()),
    ("memory", "mistral_common", ("--workload", "mistral7b", "--base-model", "{}/mistral-instruct")),
    ("plan", "matplotlib", ()),
    ("plan", "mistral_common", ("--workload", "mistral7b", "--base-model", "{}/mistral-instruct")),
    ("quality", "matplotlib", ()),
    ("decoding", "matplotlib", ()),
    ("decoding", "xllamacpp", ()),
    ("served", "xllamacpp", ("--run", "{}")),
    ("models", "mistral_common", ()),
    ("models", "mistral_common", ("--format", "gguf")),
    ("sizes", "mistral_common", ()),
]


@pytest.mark.parametrize(("module", "missing", "arguments"), MISSING)
def test_what_is_missing_is_said_before_measuring(
    module: str, missing: str, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process started, no model loaded, no file written."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    monkeypatch.setattr(subprocess, "Popen", _measured)
    monkeypatch.setattr("rescoldo.engine.model.LoraModel.load", _measured)
    monkeypatch.setattr(models, "Weights", _measured)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    filled = [text.format(tmp_path) for text in arguments]
    monkeypatch.setattr(sys, "argv", [module, *filled, "--output", str(tmp_path / "out/figures.json")])
    with pytest.raises(SystemExit, match=f"not installed: {needs.PACKAGES[missing]}\n.* -m pip install"):
        importlib.import_module(f"benchmarks.{module}").main()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# what only functions of another benchmark need that this one does not call
UNUSED = {
    *((module, "mistral_common") for module in ("decoding", "families", "kernels", "quality", "served")),
    ("kernels", "matplotlib"),
    ("kernels", "peft"),
}


def test_all_optional_packages_are_checked() -> None:
    """Each benchmark that imports one has a row above."""
    rows = {(module, missing) for module, missing, _ in MISSING}
    for module in PROGRAMS:
        for name in _imports(module, set()) & needs.PACKAGES.keys():
            assert (module, name) in rows | UNUSED, (module, name)


@pytest.mark.parametrize("module", PROGRAMS)
def test_an_output_that_cannot_be_written_is_refused_before_measuring(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module == "models":
        pytest.skip("writes a model, no figures")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(subprocess, "Popen", _measured)
    monkeypatch.setattr("rescoldo.engine.model.LoraModel.load", _measured)
    run = ["--run", str(tmp_path)] if module == "served" else []
    monkeypatch.setattr(sys, "argv", [module, *run, "--output", str(tmp_path / "file/figures.json")])
    with pytest.raises(SystemExit, match=r"figures\.json cannot be written: "):
        importlib.import_module(f"benchmarks.{module}").main()


class _Worker:
    """Steps that take as long as the instruction set says."""

    def __init__(self, *arguments: str, **_: Any) -> None:
        self.process, self.closed = subprocess.Popen([sys.executable, "-c", ""]), False
        started.append(self)

    def step(self, number: int, kernels: str) -> dict[str, float]:
        return {"seconds": {"one": 1.0, "two": 3.0}[kernels] * (1 + number), "loss": 2.5}

    def close(self) -> None:
        self.closed = True
        self.process.wait()


started: list[_Worker] = []


def test_instruction_sets_are_compared_within_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "Worker", _Worker)
    monkeypatch.setattr(kernels, "chosen", lambda text: ["one", "two"])
    monkeypatch.setattr(kernels.psutil, "Process", lambda pid: _Clock())
    output = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["kernels", "--rounds", "3", "--busy", "--output", str(output)])
    kernels.main()
    document = json.loads(output.read_text())
    two = {"seconds": 6.0, "seconds_ratio": 3.0, "cpu_seconds_ratio": 1.0, "busy_ratio": 1.0}
    assert document["sides"]["two"] == two
    assert len(document["runs"]) == 3
    assert started
    assert all(worker.closed for worker in started)


class _Clock:
    """CPU time that goes on by a second whenever it is read."""

    seconds = 0.0

    def cpu_times(self) -> _Times:
        _Clock.seconds += 1.0
        return _Times(_Clock.seconds)


class _Times(NamedTuple):
    user: float
    system: float = 0.0


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--sets", "mmx"], "'mmx': there is no such instruction set"),
        (["--against", "/nonexistent"], "is not a checkout of this project"),
    ],
)
def test_kernels_refuse_what_cannot_be_measured(
    arguments: list[str], wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", *arguments, "--output", "unused.json"])
    with pytest.raises(SystemExit):
        kernels.main()
    assert wrong in capsys.readouterr().err


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
