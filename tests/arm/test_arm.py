"""Linux on aarch64, emulated: both sets of NEON kernels against their twins, gradients, a run, its resumption, export.

scripts/arm_root.sh fetches what that needs, 700 MB, to $RESCOLDO_ARM_ROOT or .venv/arm. Speed is not measured there.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from scripts.build_wheels import PLATFORMS

from rescoldo.engine.kernels.build import INSTRUCTION_SETS, build
from tests.run.common import tiny_run

ROOT = Path(__file__).resolve().parents[2]
ARM = Path(os.environ.get("RESCOLDO_ARM_ROOT") or ROOT / ".venv" / "arm")
TARGET = next(row.target for row in PLATFORMS if row.name == "linux-aarch64")
NAMES = [row.name for row in INSTRUCTION_SETS if row.machine == "aarch64"]
SECONDS = 1500  # of a machine that is busy with other tests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def _run(*arguments: str | Path, **environment: str) -> str:
    """What `python ARGUMENTS` prints on the emulated machine."""
    surroundings = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [ARM / "python", *arguments], cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Path:
    """A folder with the libraries of both instruction sets, as a wheel has them; the emulated machine is there."""
    pytest.importorskip("ziglang", reason="the cross-compiler is not installed (requirements/wheels.txt)")
    if platform.machine() != "x86_64" or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("the emulated machine is made on Debian or Ubuntu for x86-64")
    subprocess.run([ROOT / "scripts" / "arm_root.sh", ARM], check=True, timeout=800)
    libraries = tmp_path_factory.mktemp("arm")
    for row in INSTRUCTION_SETS:
        if row.machine == "aarch64":
            build(TARGET, row, libraries / f"{row.name}.so")
    return libraries


def test_kernels_gradients_run_resumption_and_export_on_arm(machine, tmp_path):
    """One process, since importing torch takes half a minute there."""
    said = _run("-m", "tests.arm.inside", machine, *_flags(tmp_path), OUTPUT=str(tmp_path / "run"))
    results = json.loads(said.strip().splitlines()[-1])
    assert results["machine"] == "aarch64"
    assert results["chosen"] == "neoni8mm"
    assert results["passed_over"] == {}
    for name in NAMES:
        assert results["kernels"][name] is None
        assert results["gradient"][name] > 0.99
    assert results["interrupted"] == 143
    assert not results["finished before"]
    assert (results["resumed"], results["export"]) == (0, 0)
    assert results["info"]["steps"] == 2
    assert len(results["info"]["resumptions"]) == 1
    assert results["info"]["losses"][0]["val_loss"] < results["info"]["val_loss_before"]
    assert "adapter-F32.gguf" in results["exported"]


def _flags(folder: Path) -> list[str]:
    flags = tiny_run(folder, examples=4, epochs=1, gguf=True)
    return [*(flag for flag in flags if not flag.startswith("--quantization")), "--quantization=int8"]
