"""The program without everything that only Linux has, and with macOS's own commands: see sitecustomize.py.

It has not been run on a Mac. What is left of Linux here: the C library, the loader, what psutil reads.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rescoldo.engine.kernels.build import usable
from rescoldo.system import cpu
from tests.run.common import tiny_run

APPLE = {"machdep.cpu.brand_string": "Apple M2", "hw.optional.arm.FEAT_I8MM": "1", "hw.optional.arm.FEAT_BF16": "1"}
INTEL = {
    "machdep.cpu.brand_string": "Intel(R) Core(TM) i5-8259U CPU @ 2.30GHz",
    "hw.optional.avx2_0": "1",
    "hw.optional.fma": "1",
    "hw.optional.f16c": "1",
    "hw.optional.avx512f": "0",
}
ICE_LAKE = {
    **INTEL,
    **{f"hw.optional.avx512{part}": "1" for part in ("f", "bw", "dq", "vl")},
    "machdep.cpu.leaf7_features": "RDWRFSGS AVX2 AVX512F AVX512VNNI",
}


def _commands(folder: Path, sysctl: dict[str, str]) -> Path:
    """A folder with macOS's `sysctl` and `caffeinate`, which notes that it ran, and the tools that a build needs."""
    folder.mkdir()
    said = "\n".join(f"{name}: {value}" for name, value in sysctl.items())
    scripts = {"sysctl": f"cat <<'END'\n{said}\nEND", "caffeinate": f'echo "$@" >>{folder}/caffeinated; exec cat'}
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
        (folder / name).chmod(0o755)
    for name in ("gcc", "as", "ld", "sh", "cat"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def macos(monkeypatch):
    """Chooses what `sysctl` says, in this process."""

    def become(machine: str, sysctl: dict[str, str], folder: Path) -> None:
        monkeypatch.setenv("PATH", str(_commands(folder, sysctl)))
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu, "CPUINFO", folder / "no such file")
        for cached in (cpu._lines, cpu.identity):
            cached.cache_clear()

    yield become
    for cached in (cpu._lines, cpu.identity):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("machine", "sysctl", "model", "names"),
    [
        ("arm64", APPLE, "Apple M2", ["neoni8mm", "neon"]),
        ("arm64", {"machdep.cpu.brand_string": "Apple M1"}, "Apple M1", ["neon"]),
        ("arm64", {}, None, ["neon"]),
        ("x86_64", INTEL, INTEL["machdep.cpu.brand_string"], ["avx2"]),
        ("x86_64", ICE_LAKE, INTEL["machdep.cpu.brand_string"], ["avx512", "avx2"]),
        ("x86_64", {"machdep.cpu.brand_string": "VirtualApple @ 2.50GHz"}, "VirtualApple @ 2.50GHz", []),
    ],
)
def test_what_sysctl_says_chooses_the_kernels(macos, tmp_path, machine, sysctl, model, names):
    macos(machine, sysctl, tmp_path / "bin")
    assert [row.name for row in usable(cpu.instructions())] == names
    if model is not None:
        assert cpu.model() == model
        assert model in cpu.identity()


def test_without_sysctl_there_are_no_kernels_and_no_error(macos, tmp_path):
    macos("x86_64", {}, tmp_path / "bin")
    (tmp_path / "bin" / "sysctl").unlink()
    assert cpu.instructions() == frozenset()


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in cpu.instructions() or not shutil.which("gcc"), reason="needs AVX2 and gcc")
def test_train_doctor_and_status_run_without_what_only_linux_has(tmp_path):
    commands = _commands(tmp_path / "bin", INTEL)
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    surroundings = {
        **{name: value for name, value in os.environ.items() if name not in ("CC", "RESCOLDO_KERNELS")},
        "RESCOLDO_TEST_MACOS": "x86_64",
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": str(commands),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }

    def rescoldo(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rescoldo", *words]
        done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    flags = [flag for flag in tiny_run(tmp_path, examples=4, epochs=1, gguf=True) if "quantization" not in flag]
    flags += ["--quantization=int8", f"--output={tmp_path / 'run'}"]
    checks = json.loads(rescoldo("doctor", *flags, "--json").stdout)
    text = json.dumps(checks)
    assert INTEL["machdep.cpu.brand_string"] in text
    assert "avx2 kernels" in text
    assert "the run will prevent sleep" in text
    rescoldo("train", *flags)
    assert len((commands / "caffeinated").read_text().splitlines()) >= 2
    info = json.loads((tmp_path / "run" / "training_info.json").read_text())
    assert info["host"]["cpu"] == INTEL["machdep.cpu.brand_string"]
    assert json.loads(rescoldo("status", str(tmp_path / "run"), "--json").stdout)["status"] == "finished"
