"""Temporary files: whose they are, and when they are removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rescoldo import files
from rescoldo.files import STALE_SECONDS, remove_stale, temporary_beside, write_text

KILLED = """
import os, signal, sys
from pathlib import Path
from rescoldo.files import write_atomic
def write(temporary):
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), write)
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    subprocess.run([sys.executable, "-c", KILLED, str(output)], check=False, env={**os.environ})
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".report.json.")
    write_text(output, "whole")
    assert list(tmp_path.iterdir()) == [output]


def dead() -> int:
    """A process id that no process has any more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_belongs_to_somebody_else_stays(tmp_path: Path) -> None:
    """A living process; another machine, whose process ids say nothing here; other names."""
    output, here, gone = tmp_path / "a.json", files._machine(), dead()
    stays = [
        f".a.json.{here}-{os.getppid()}.tmp",
        f".a.json.{here}-1.tmp",
        f".a.json.0123abcd-{gone}.tmp",
        f".a.json.{gone}.tmp",  # as earlier versions named them, on whatever machine
        f".b.json.{here}-{gone}.tmp",
        f".a.json.{here}-{gone}.tmp.bak",
        f".a.json.{here}-{gone}",
        f"a.json.{here}-{gone}.tmp",
        f".a.json.x{here}-{gone}.tmp",
        f".axjson.{here}-{gone}.tmp",
        ".a.json.tmp",
    ]
    goes = [f".a.json.{here}-{gone}.tmp", f".a.json.{here}-{gone}.old.tmp", f".a.json.{here}-999999999.tmp"]
    for name in stays + goes:
        (tmp_path / name).write_text("")
    write_text(output, "")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *stays}


def test_another_machines_file_is_nobodys_after_a_week(tmp_path: Path) -> None:
    gone = dead()
    for name, age in (("0123abcd-5", 1.1), (f"{gone}", 1.1), ("0123abcd-6", 0.9)):
        path = tmp_path / f".a.{name}.tmp"
        path.write_text("")
        os.utime(path, (time.time() - age * STALE_SECONDS,) * 2)
    remove_stale(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [".a.0123abcd-6.tmp"]


def test_directories_go_too_and_links_are_not_followed(tmp_path: Path) -> None:
    kept, ours = tmp_path / "kept", f"{files._machine()}-{dead()}"
    kept.mkdir()
    (kept / "file").write_text("")
    folder = tmp_path / f".merged.{ours}.tmp"
    folder.mkdir()
    (folder / "model").write_text("")
    (tmp_path / f".linked.{ours}.tmp").symlink_to(kept)
    for name in ("merged", "linked"):
        remove_stale(tmp_path / name)
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "file").exists()


def test_a_folder_is_looked_through_once_for_each_path(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    left = tmp_path / f".a.{files._machine()}-{dead()}.tmp"
    left.write_text("")
    write_text(tmp_path / "a", "")
    assert left.exists()
    assert temporary_beside(tmp_path / "a").name == f".a.{files._machine()}-{os.getpid()}.tmp"
    assert temporary_beside(tmp_path / "missing" / "a").parent == tmp_path / "missing"
