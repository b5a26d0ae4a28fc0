"""The Containerfile, read: what it copies is there, what it runs works with that alone. Images are not built here."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IGNORED = (ROOT / ".containerignore").read_text(encoding="utf-8")
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")


def _stages() -> list[list[tuple[str, str]]]:
    """The instructions and their arguments, by stage."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = []
    for line in lines.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append([])
        if word and stages:
            stages[-1].append((word, rest.strip()))
    return stages


BUILD, RUN = _stages()


def _copied(stage: list[tuple[str, str]]) -> list[str]:
    return [name for word, rest in stage if word == "COPY" and "--from" not in rest for name in shlex.split(rest)[:-1]]


def test_what_is_copied_is_there() -> None:
    assert _copied(BUILD)
    assert all((ROOT / name).exists() for name in (*_copied(BUILD), *_copied(RUN)))


def _sent(name: str) -> bool:
    """Whether the ignore file lets a file or folder at the top be copied: the last pattern that matches decides."""
    sent = True
    for pattern in IGNORED.splitlines():
        if fnmatch.fnmatchcase(name.split("/", maxsplit=1)[0], pattern.removeprefix("!").rstrip("/")):
            sent = pattern.startswith("!")
    return sent


def test_what_is_copied_is_not_ignored() -> None:
    """By podman or buildah, and by docker, which read files of different names."""
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8") == IGNORED
    assert [name for name in (*_copied(BUILD), *_copied(RUN)) if not _sent(name)] == []
    assert not _sent("artifacts")
    assert not _sent(".venv")


def test_it_runs_the_program_as_a_user_without_rights_and_without_a_compiler() -> None:
    words = dict(RUN)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", words["USER"])
    program = re.findall(r"\w+", words["ENTRYPOINT"])
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert len(program) == 1
    assert program[0] in scripts
    after = [word for word, _ in RUN][[word for word, _ in RUN].index("USER") + 1 :]
    assert not {"RUN", "COPY", "USER"} & {*after}
    assert not re.search(r"\b(gcc|clang|build-essential|ziglang)\b", " ".join(rest for _, rest in RUN))
    writable = {name for _, rest in RUN for name in re.findall(r"mkdir -m 1777 (\S+)", rest)}
    assert words["WORKDIR"] in writable
    assert set(re.findall(r"XDG_\w+=(\S+)", words["ENV"])) <= writable


def test_the_wheel_script_needs_no_package_to_start() -> None:
    """-S: nothing from site-packages."""
    command = [sys.executable, "-S", ROOT / "scripts/build_wheels.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (said,) = [rest for word, rest in BUILD if word == "RUN" and "build_wheels.py" in rest]
    flags = re.findall(r"--[\w-]+", said.split("&&")[0])
    assert flags
    assert all(flag in done.stdout for flag in flags)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="wheels are built on Linux")
def test_what_is_copied_is_enough_for_the_wheel(tmp_path: Path) -> None:
    """The build stage's script, on the files that the stage has. For the architecture with the fewest libraries."""
    pytest.importorskip("ziglang", reason="the cross-compiler is not installed (requirements/wheels.txt)")
    for name in _copied(BUILD):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
            )
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (said,) = [rest for word, rest in BUILD if word == "RUN" and "build_wheels.py" in rest]
    words = shlex.split(said.split("&&")[0].replace("$(uname -m)", "aarch64").replace("/dist", str(tmp_path / "dist")))
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([*(tmp_path / "dist").glob("*-manylinux_*_aarch64.whl")]) == 1
