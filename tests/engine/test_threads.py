"""The kernels' own threads under the thread sanitizer: threads_driver.c with the kernels' sources, and with faults."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rescoldo.engine.kernels.build import SOURCES, C, usable
from rescoldo.system import cpu

ROUNDS = "2000"
DRIVER = Path(__file__).with_name("threads_driver.c")
ROWS = [row for row in usable(cpu.instructions()) if row.name in ("avx2", "neon")]
FLAGS = ("-O1", "-g", "-std=gnu11", "-fopenmp-simd", "-pthread", "-fsanitize=thread")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ROWS or not shutil.which("gcc"), reason="needs gcc, and AVX2 or NEON"),
]


def _compile(source: Path, out: Path) -> Path:
    (row,) = ROWS
    flags = [*FLAGS, *row.flags, f'-DRESCOLDO_ISA="isa/{row.header}"', f"-I{C}"]
    subprocess.run(["gcc", *flags, "-c", source, "-o", out], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every source but threads.c, compiled for the sanitizer."""
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        (folder / "empty.c").write_text("int main(void) { return 0; }\n")
        subprocess.run(["gcc", *FLAGS, folder / "empty.c", "-o", folder / "empty"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("this gcc has no thread sanitizer")
    if subprocess.run([folder / "empty"], check=False, capture_output=True).returncode:
        pytest.skip("the thread sanitizer does not run on this kernel")
    sources = [DRIVER, *(C / name for name in SOURCES if name != "threads.c")]
    return {source.name: _compile(source, folder / f"{source.stem}.o") for source in sources}


def _run(objects: dict[str, Path], threads: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    made = _compile(threads, folder / "threads.o")
    subprocess.run(["gcc", *FLAGS, *objects.values(), made, "-o", folder / "driver", "-lm"], check=True)
    surroundings = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [folder / "driver", ROUNDS], env=surroundings, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_pool_has_no_races_and_results_do_not_depend_on_threads(objects: dict[str, Path], tmp_path: Path) -> None:
    done = _run(objects, C / "threads.c", tmp_path)
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "same bytes\n")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("if (!spin(left, 0, SPIN_CALLER)) {", "if (0) {", id="the caller does not wait"),
        pytest.param(
            "if (!atomic_compare_exchange_weak(&pool.next, &from, from + take)) continue;",
            "atomic_store(&pool.next, from + take);",
            id="two threads claim a piece",
        ),
    ],
)
def test_a_faulty_pool_is_found(objects: dict[str, Path], tmp_path: Path, right: str, wrong: str) -> None:
    text = (C / "threads.c").read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "threads.c").write_text(text.replace(right, wrong), encoding="utf-8")
    assert _run(objects, tmp_path / "threads.c", tmp_path).returncode != 0
