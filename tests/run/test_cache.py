"""Where caches lie for users without a home, with one that cannot be written, and on file systems mounted noexec."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from rescoldo import files
from rescoldo.files import allow_cache_near, choose_cache, private_folder
from rescoldo.run.registry import registry_folder
from tests.run.common import tiny_run


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A home, a folder of outputs, a temporary folder; nothing else is known."""
    for name in ("home", "work", "tmp"):
        (tmp_path / name).mkdir()
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(files, "_output", None)
    closed: set[Path] = set()

    def access(path: str | Path, mode: int) -> bool:  # root may write everywhere
        return not any(Path(path).is_relative_to(place) for place in closed)

    monkeypatch.setattr(os, "access", access)
    return SimpleNamespace(home=tmp_path / "home", work=tmp_path / "work", tmp=tmp_path / "tmp", closed=closed)


def test_the_usual_place(places, monkeypatch):
    assert choose_cache() == (places.home / ".cache" / "rescoldo", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(places.work))
    assert choose_cache() == (places.work / "rescoldo", "")


def test_a_home_that_cannot_be_written(places):
    places.closed.add(places.home)
    folder, why = choose_cache()
    assert folder == places.tmp / f"rescoldo-{os.getuid()}"
    assert f"{places.home}/.cache/rescoldo cannot be written" in why
    allow_cache_near(places.work / "run")
    assert choose_cache()[0] == places.work / ".rescoldo-cache"
    assert registry_folder() == places.tmp / f"rescoldo-{os.getuid()}" / "runs"


def test_a_user_without_a_home(places, monkeypatch):
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert choose_cache() == (places.tmp / f"rescoldo-{os.getuid()}", "this user has no home directory")
    assert registry_folder().parent == private_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(places.work))
    assert choose_cache() == (places.work / "rescoldo", "")


def test_a_file_in_the_place_of_the_folder(places):
    (places.home / ".cache").write_bytes(b"")
    assert choose_cache()[0].parent == places.tmp


def test_noexec_holds_for_what_is_loaded_only(places, monkeypatch):
    real = os.statvfs

    def statvfs(path: str | Path) -> object:
        if Path(path).is_relative_to(places.home):
            return SimpleNamespace(f_flag=os.ST_NOEXEC)
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert choose_cache()[1] == ""
    folder, why = choose_cache(loadable=True)
    assert folder.parent == places.tmp
    assert "noexec" in why


def test_the_temporary_folder_is_nobody_elses(places):
    folder = private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert private_folder() == folder
    folder.chmod(0o777)  # others could put a library there
    assert private_folder() != folder
    folder.rmdir()
    folder.symlink_to(places.work)
    assert private_folder() != folder
    assert private_folder() == private_folder()


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root and setpriv")
def test_a_service_account_without_home_trains_and_verifies():
    """A user id that the system does not know; it may read all, so that this Python can lie anywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        flags = tiny_run(folder)
        place = folder / "own"
        place.mkdir()
        os.chown(place, 4242, 4242)
        caps = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
        as_user = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", *caps, sys.executable, "-m", "rescoldo"]
        hidden = ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "USER", "LOGNAME")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}

        def run(*arguments: str) -> str:
            done = subprocess.run(
                [*as_user, *arguments], cwd=place, env=environment, capture_output=True, encoding="utf-8", check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        output = place / "run"
        said = run("train", *flags, f"--output={output}", "--max-steps=1", "--force")
        assert f"they are kept in {place}/.rescoldo-cache: this user has no home directory" in said
        assert "✅ Fine-tuning completed!" in said
        run("verify", str(output))
        assert run("status").startswith("✅ finished")
        assert sorted(path.name for path in place.iterdir()) == [".rescoldo-cache", "run"]
