"""Every text file and every pipe of text names its encoding: otherwise it is the locale's (ASCII under LC_ALL=C)."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("src", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


def faults(tree: ast.AST) -> list[int]:
    """The lines of calls that open text without naming its encoding."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in given:
            continue
        method = isinstance(call.func, ast.Attribute)
        if (name == "open" and (not method or owner == "io")) or (name == "fdopen" and owner == "os"):
            mode = call.args[1] if len(call.args) > 1 else given.get("mode")
            binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
            fault = not binary
        elif name == "open" and method:  # Path.open(mode); others' open() take no mode as their first argument
            mode = call.args[0] if call.args else given.get("mode")
            fault = isinstance(mode, ast.Constant) and str(mode.value) in ("r", "w", "a", "x", "r+", "w+", "a+")
        elif name in ("read_text", "write_text") and method:
            fault = not (name == "read_text" and call.args)
        else:
            texts = (given.get("text"), given.get("universal_newlines"))
            fault = any(isinstance(value, ast.Constant) and value.value is True for value in texts)
        if fault:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, mode='a')", True),
        ("open(p, 'rb')", False),
        ("open(p, encoding='ascii')", False),
        ("p.read_text()", True),
        ("p.read_text(errors='replace')", True),
        ("p.write_text(t)", True),
        ("p.read_text(encoding='utf-8')", False),
        ("p.open('w')", True),
        ("os.open(p, os.O_RDONLY)", False),
        ("os.fdopen(fd, 'w')", True),
        ("write_text(p, t)", False),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, text=True, encoding='utf-8')", False),
        ("subprocess.run(c)", False),
    ],
)
def test_the_rule(code, wrong):
    assert bool(faults(ast.parse(code))) == wrong


def test_each_encoding_is_named():
    found = {
        f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in faults(ast.parse(path.read_text("utf-8")))
    }
    assert found == set()


@pytest.mark.slow
def test_a_plain_locale_without_utf8_mode(tmp_path):
    """Data, roles and the kernels' source are read as UTF-8 whatever the locale says."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    data = ROOT / "artifacts" / "synthetic"
    flags = ["--train-limit=4", "--val-limit=1", f"--train={data / 'ba_train_v2_fixed.jsonl'}", "--threads=1"]
    flags += [f"--val={data / 'ba_val_v2_fixed.jsonl'}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "rescoldo", "doctor", *flags], env=environment, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr
    assert b"UnicodeDecodeError" not in done.stdout + done.stderr
    assert re.search(rb"kernels: \w+ kernels", done.stdout) or b"no C compiler" in done.stdout
