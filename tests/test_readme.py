"""What the documents tell people to type exists: commands, flags, links, the Python snippet."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from rescoldo.cli.main import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SYNTHETIC = ROOT / "artifacts" / "synthetic"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(document, line) of every line in a shell block that calls the program or its script."""
    lines = [
        (str(path.relative_to(ROOT)), line.strip())
        for path in DOCUMENTS
        for block in blocks(path, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [(name, line) for name, line in lines if re.search(r"(^|/)rescoldo | scripts/", line)]


def load(script: str) -> typer.Typer:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    application: typer.Typer = module.app
    return application


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("document", "line"), commands())
def test_command(document: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if word != ".venv/bin/python"]
    program, *words = words
    command = typer.main.get_command(app if program.endswith("rescoldo") else load(program))
    path = [program]
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        path.append(words.pop(0))
        assert path[-1] in command.commands, line  # type: ignore[attr-defined]
        command = command.commands[path[-1]]  # type: ignore[attr-defined]
    # parsing alone: unknown flags, missing values and arguments are errors
    command.make_context(" ".join(path), list(words))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


def test_dataset_record_in_the_guide() -> None:
    (block,) = blocks(ROOT / "docs" / "operation.md", "json")
    assert json.loads(block)["requirements"]["functional_requirements"][0]["id"] == "FR001"


def snippet() -> str:
    (block,) = blocks(ROOT / "README.md", "python")
    return block


def test_snippet_calls_what_is_there() -> None:
    """It compiles, and each function takes the arguments that it is given."""
    import ast
    import inspect

    import rescoldo

    calls = [node for node in ast.walk(ast.parse(snippet())) if isinstance(node, ast.Call)]
    found = [node for node in calls if ast.unparse(node.func).startswith("rescoldo.")]
    assert len(found) == 4
    for node in found:
        function = getattr(rescoldo, ast.unparse(node.func).removeprefix("rescoldo."))
        inspect.signature(function).bind(*node.args, **{str(one.arg): one.value for one in node.keywords})


@pytest.mark.slow
def test_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's lines, on two examples and for one step."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 2), ("val", 1)):
        lines = (SYNTHETIC / f"ba_{name}_v2_fixed.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    code = snippet()
    for old, new in (
        ('base_model="sample:smollm2")', 'base_model="sample:smollm2", max_steps=1)'),
        ('"val.jsonl").score', '"val.jsonl", max_new_tokens=8).score'),
        ('"val.jsonl").sentence', '"val.jsonl", max_new_tokens=8).sentence'),
        ('"A tool library"})', '"A tool library"}, max_new_tokens=8)'),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "✅ Fine-tuning completed!" in capsys.readouterr().out
    assert Path("artifacts/mine/adapter_model.safetensors").is_file()
