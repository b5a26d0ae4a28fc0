"""What hints name is what the user can type, however the program was started."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rescoldo.allowed import number, refused
from rescoldo.cli.main import app, run_app
from rescoldo.extras import EXTRAS, install_command
from rescoldo.invocation import program
from rescoldo.names import SYNONYMS, similar
from rescoldo.training.config import RunConfig
from rescoldo.units import count, when

ROOT = Path(__file__).parent.parent
WRITTEN = ("prompt.py", "load.py", "skeleton.py")  # they write files for people, who start it as they like
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Sets how this process was started: argv[0], the interpreter as typed, sys.executable; in tmp_path, PATH empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def started(argv0: str, typed: str = "python", python: str = "/usr/bin/python3.11") -> str:
        monkeypatch.setattr(sys, "argv", [argv0])
        monkeypatch.setattr(sys, "orig_argv", [typed])
        monkeypatch.setattr(sys, "executable", python)
        return program()

    return started


def script(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_console_script_not_on_the_path(start, tmp_path):
    script(tmp_path / ".venv" / "bin" / "rescoldo")
    assert start(".venv/bin/rescoldo") == ".venv/bin/rescoldo"
    assert start(str(tmp_path / ".venv/bin/rescoldo")) == ".venv/bin/rescoldo"
    assert start("/opt/my tools/rescoldo") == "'/opt/my tools/rescoldo'"


def test_console_script_on_the_path(start, tmp_path):
    real = script(tmp_path / "pipx" / "rescoldo")
    (tmp_path / "bin" / "rescoldo").symlink_to(real)
    assert start(str(tmp_path / "bin" / "rescoldo")) == "rescoldo"
    assert start("rescoldo") == "rescoldo"
    script(tmp_path / "other" / "rescoldo")  # another one of that name than the shell would find
    assert start("other/rescoldo") == "other/rescoldo"


def test_module(start):
    assert start("/x/src/rescoldo/__main__.py", ".venv/bin/python") == ".venv/bin/python -m rescoldo"
    assert start("/x/src/rescoldo/__main__.py", "python3") == "python3 -m rescoldo"


def test_neither(start, tmp_path):
    """A script of the repository, a background process, a notebook."""
    assert start("scripts/demo.py") == "/usr/bin/python3.11 -m rescoldo"
    script(tmp_path / ".venv" / "bin" / "rescoldo")
    python = str(tmp_path / ".venv" / "bin" / "python")
    assert start("scripts/demo.py", python=python) == ".venv/bin/rescoldo"
    assert start("/x/src/rescoldo/__main__.py", python, python) == ".venv/bin/rescoldo"
    assert start("", python=python) == ".venv/bin/rescoldo"


def test_a_hint_can_be_typed(tmp_path):
    """Started as a module from another directory: the hint runs."""
    done = subprocess.run(
        [sys.executable, "-m", "rescoldo", "trian"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    (hint,) = re.findall(r"did you mean (.*)\?", done.stderr)
    again = subprocess.run(f"{hint} --help", shell=True, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 0
    assert "--epochs" in again.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_message_names_a_command_by_hand(path):
    """In string literals; docstrings and comments may say what the command is called."""
    import ast

    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    commands = "|".join(["train", "doctor", "plan", "status", "watch", "logs", "stop", "list", "verify", "data", "role",
                         "sweep", "eval", "export", "serve", "chat", "compare", "optimize"])  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found = re.search(rf"rescoldo ({commands})\b", node.value)
            assert found is None or path.name in WRITTEN, f"{path}:{node.lineno}: {found.group()}"


def run(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["rescoldo", *words])
    monkeypatch.setenv("COLUMNS", "200")
    code = run_app(app)
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--learning-rate", "1"], "there is no option --learning-rate\n  → did you mean --lr?"),
        (["train", "--num_train_epochs=2"], "did you mean --epochs?"),
        (["chat", "x", "--max-tokens", "3"], "did you mean --max-new-tokens?"),
        (["data", "splt"], "did you mean rescoldo data split?"),
        (["data", "split", "--nonsense"], "rescoldo data split --help lists the options"),
        (["watch", "--every", "0"], "--every 0 is not allowed: use a number of at least 0.2"),
        (["serve", "x", "--port", "99999"], "--port 99999 is not allowed: use a whole number from 0 to 65535"),
        (["logs", "-n", "many"], "--lines many is not allowed: use a whole number of at least 0"),
        (
            ["eval", "x", "--dataset", "y", "--temperature", "-1"],
            "--temperature -1 is not allowed: use a number from 0",
        ),
        (["eval", "x", "--dataset", "y", "--top-p", "0"], "use a number above 0 and at most 1"),
        (["compare", "--baseline", "x", "--dataset", "y", "--finetuned", "z", "--samples", "0"], "--samples 0 is not"),
        (["optimize", "--model", "x", "--train", "y", "-o", "z", "--timeout", "nan"], "--timeout nan is not allowed"),
    ],
)
def test_refused_options(monkeypatch, capsys, words, said):
    code, text = run(monkeypatch, capsys, *words)
    assert code == 2
    assert said in text


def test_help_keeps_brackets(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, "optimize", "--help")
    assert code == 0
    assert "[dspy]" in text
    assert re.search(r"Example: \S*rescoldo optimize --model", text.replace("-m ", ""))


def test_synonyms_are_of_options_that_exist():
    """Every synonym leads to an option of some command, and hides none that is called so itself."""
    import typer

    group = typer.main.get_command(app)
    commands = [command for one in group.commands.values() for command in getattr(one, "commands", {"": one}).values()]
    known = {parameter.name.strip("_") for command in commands for parameter in command.params}
    for name, meant in SYNONYMS.items():
        assert set(meant) & known, name
        assert similar(name, RunConfig.model_fields) in ("", *meant, name), name


def test_ranges_in_words():
    assert number(whole=True, ge=1, le=10_000) == "a whole number from 1 to 10000"
    assert number(gt=0, le=1) == "a number above 0 and at most 1"
    assert number(ge=0, lt=1) == "a number of at least 0 and below 1"
    assert number(whole=True, ge=1) == "a whole number of at least 1"
    assert number() == "a number"
    assert refused(True, "x") == "true is not allowed (a boolean): use x"
    assert refused("a b", "x") == "'a b' is not allowed: use x"
    assert len(refused("y" * 10_000, "x")) < 120


def test_counts_and_moments():
    assert [count(n, "step") for n in (0, 1, 2, 1234)] == ["0 steps", "1 step", "2 steps", "1,234 steps"]
    assert count(2, "entry", "entries") == "2 entries"
    assert re.fullmatch(r"2026-0[12]-\d\d \d\d:\d\d", when("2026-01-31T14:05:00+0000"))
    assert when("today") == "today"


def test_extras_are_those_of_the_package():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    assert {name: tuple(packages) for name, packages in groups.items() if name != "all"} == EXTRAS
    assert groups["all"] == [f"rescoldo[{','.join(EXTRAS)}]"]
    every = {line.partition("==")[0].lower() for line in (ROOT / "requirements" / "base.txt").read_text().splitlines()}
    for package in [*project["dependencies"], *EXTRAS["serve"], *EXTRAS["servers"], *EXTRAS["tensorboard"]]:
        assert re.split("[><=[]", package)[0].lower() in every, package


def test_an_extra_can_be_installed_by_the_command_that_is_named(monkeypatch):
    assert install_command("sweep").endswith("python -m pip install 'optuna>=4.0' 'matplotlib>=3.9'")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert install_command("serve").startswith("uv pip install --python ")
    monkeypatch.setattr(sys, "prefix", "/home/me/.local/share/pipx/venvs/rescoldo")
    assert install_command("serve") == "pipx inject rescoldo 'starlette>=0.46' 'uvicorn>=0.34'"


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["serve", "sample:smollm2"], "starlette"),
        (["eval", "openai:x@http://127.0.0.1:1/v1", "--dataset", "x"], ""),
        (["optimize", "--model", "sample:smollm2", "--train", "x", "-o", "y"], ""),
    ],
)
def test_missing_packages_are_named(monkeypatch, capsys, words, package):
    """Without the extras: one message and no traceback."""
    import builtins
    import importlib.util

    gone = ("starlette", "uvicorn", "openai", "tensorboard", "dspy", "optuna", "matplotlib")
    find, load = importlib.util.find_spec, builtins.__import__
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else find(name, *rest))

    def imported(name, *rest, **named):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *rest, **named)

    for name in [name for name in sys.modules if name.partition(".")[0] in gone or name.startswith("rescoldo.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", imported)
    code, text = run(monkeypatch, capsys, *words)
    assert code != 0
    assert "Traceback" not in text
    if package:
        assert f"needs the package {package}" in text
        assert "pip install 'starlette>=0.46'" in text
