"""The wheels: what is in them, and that one trains without a compiler. Built by scripts/build_wheels.py."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from scripts.binaries import Binary, read
from scripts.build_wheels import GLIBC, PLATFORMS, declared, faults, make, wheel_faults

from rescoldo.engine.kernels.build import INSTRUCTION_SETS, usable
from rescoldo.system import cpu
from tests.run.common import tiny_run

LINUX = PLATFORMS[0]
GOOD = Binary("ELF", "x86_64", declared(), frozenset({"libc.so.6"}), frozenset({GLIBC}))
MAC = Binary("Mach-O", "aarch64", declared(), frozenset({"/usr/lib/libSystem.B.dylib"}), minimum=(11, 0), signed=True)


def test_each_platform_has_its_instruction_sets():
    for platform in PLATFORMS:
        assert platform.rows
        assert {row.machine for row in platform.rows} == {platform.machine}
    assert {row.name for platform in PLATFORMS for row in platform.rows} == {row.name for row in INSTRUCTION_SETS}


def test_the_header_declares_what_python_calls():
    assert {"kernels_layout", "kernels_start", "int8_product", "attend_backward"} <= declared()
    assert len(declared()) == len([line for line in declared() if line.isidentifier()])


@pytest.mark.parametrize(
    ("found", "platform", "said"),
    [
        (GOOD, LINUX, None),
        (Binary("ELF", "aarch64", *(GOOD.exported, GOOD.needed, GOOD.glibc)), LINUX, "not ELF for x86_64"),
        (Binary("ELF", "x86_64", GOOD.exported | {"parallel"}, GOOD.needed), LINUX, "'parallel'"),
        (Binary("ELF", "x86_64", GOOD.exported - {"attend"}, GOOD.needed), LINUX, "'attend'"),
        (Binary("ELF", "x86_64", GOOD.exported, frozenset({"libgomp.so.1"})), LINUX, "libgomp.so.1"),
        (Binary("ELF", "x86_64", GOOD.exported, GOOD.needed, frozenset({(2, 34)})), LINUX, "glibc 2.34"),
        (MAC, PLATFORMS[2], None),
        (Binary("Mach-O", "aarch64", MAC.exported, MAC.needed, minimum=(11, 0)), PLATFORMS[2], "not signed"),
        (Binary("Mach-O", "aarch64", MAC.exported, MAC.needed, minimum=(13, 0), signed=True), PLATFORMS[2], "(13, 0)"),
    ],
)
def test_a_library_that_does_not_fit_is_refused(found, platform, said):
    wrong = faults(found, platform)
    assert wrong == [] if said is None else said in "".join(wrong)


@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("nm"), reason="no gcc or nm here")
def test_what_is_read_from_a_library_is_what_binutils_read(tmp_path):
    (tmp_path / "a.c").write_text(
        "#include <math.h>\n#include <stdlib.h>\nstatic int own(void) { return 1; }\n"
        '__attribute__((visibility("hidden"))) int hidden(void) { return own(); }\n'
        'double visible(double x) { return exp(x) + hidden() + atoi(getenv("A")); }\nint other = 3;\n'
    )
    library = tmp_path / "a.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "a.c", "-lm"], check=True)
    found = read(library)
    listed = subprocess.run(
        ["nm", "--dynamic", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    assert found.exported == {line.split()[-1] for line in listed.splitlines()}
    assert {"visible", "other"} <= found.exported
    dynamic = subprocess.run(["readelf", "-dV", "--wide", library], capture_output=True, text=True, check=True).stdout
    assert found.needed == {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    for version in found.glibc:
        assert f"GLIBC_{'.'.join(map(str, version))}" in dynamic
    assert found.glibc


def _wheel(folder: Path, change=lambda name, data: data) -> Path:
    """A small wheel for LINUX, each file as `change` makes it; its libraries are not ones."""
    files = {f"rescoldo/engine/kernels/lib/{row.name}.so": row.name.encode() for row in LINUX.rows}
    about = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-{LINUX.tag}\n".encode()
    files = {**files, "rescoldo-1.dist-info/WHEEL": about}
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files["rescoldo-1.dist-info/RECORD"] = f"{record}rescoldo-1.dist-info/RECORD,,\n".encode()
    wheel = folder / f"rescoldo-1-py3-none-{LINUX.tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            if (changed := change(name, data)) is not None:
                archive.writestr(name, changed)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, data: data, None),
        (lambda name, data: data.replace(b"manylinux", b"linux") if name.endswith("WHEEL") else data, "just 'Tag:"),
        (lambda name, data: data.replace(b"false", b"true") if name.endswith("WHEEL") else data, "just 'Root-Is-"),
        (lambda name, data: b"other" if name.endswith("avx2.so") else data, "another hash of rescoldo/engine"),
        (lambda name, data: None if name.endswith("avx2.so") else data, "does not list what is in it"),
        (lambda name, data: data.replace(b"/avx2.so", b"/mmx.so") if name.endswith("RECORD") else data, "mmx.so"),
    ],
)
def test_a_wheel_that_is_not_what_it_says_is_refused(tmp_path, monkeypatch, change, said):
    monkeypatch.setattr("scripts.build_wheels.read", lambda path: GOOD)
    wrong = wheel_faults(_wheel(tmp_path, change), LINUX)
    assert wrong == [] if said is None else said in "".join(wrong)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sdist, the pure wheel and all platforms' wheels; each has been checked when it was packed."""
    pytest.importorskip("ziglang", reason="the cross-compiler is not installed (requirements/wheels.txt)")
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("wheels are built on Linux for x86-64")
    return make(tmp_path_factory.mktemp("dist"), [platform.name for platform in PLATFORMS], isolated=False)


@pytest.mark.slow
def test_every_platform_has_a_wheel(made):
    sdist, pure, *wheels = made
    assert sdist.name.endswith(".tar.gz")
    with zipfile.ZipFile(pure) as archive:
        assert not any(name.endswith(".so") for name in archive.namelist())
        assert "rescoldo/engine/kernels/c/isa/avx2.h" in archive.namelist()
    for wheel, platform in zip(wheels, PLATFORMS, strict=True):
        assert wheel_faults(wheel, platform) == []
        others = [other for other in PLATFORMS if other is not platform]
        assert all(wheel_faults(wheel, other) for other in others)  # what is checked tells them apart


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
def test_the_sdist_builds_its_kernels_on_first_use(made, tmp_path):
    with tarfile.open(made[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.glob("rescoldo-*")
    (row, *_) = usable(cpu.instructions())
    say = (
        "import sys; from pathlib import Path; from rescoldo.engine.kernels import build; name, cache = sys.argv[1:]; "
        "print(build.__file__, build.library(build.instruction_set(name), Path(cache)))"
    )
    command = [sys.executable, "-c", say, row.name, tmp_path / "cache"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tree / "src")}, capture_output=True, text=True, check=True
    )
    module, library = done.stdout.split()
    assert Path(module).is_relative_to(tree)
    assert Path(library).is_relative_to(tmp_path / "cache")
    assert faults(dataclasses.replace(read(Path(library)), glibc=frozenset()), LINUX) == []


@pytest.mark.slow
def test_a_wheel_trains_without_a_compiler(made, tmp_path):
    """Installed into an environment of its own with no compiler in reach, and used."""
    wheel = made[2]
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    # what it depends on comes from here; an editable rescoldo does not: only lines of a .pth in a site directory count
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet", "--no-deps",
         "--no-index", "--ignore-installed", wheel],
        check=True,
    )  # fmt: skip
    cache = tmp_path / "cache"
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "PYTHONPATH", "RESCOLDO_KERNELS")}
    surroundings = {**kept, "PATH": str(environment / "bin"), "XDG_CACHE_HOME": str(cache)}
    flags = [flag for flag in tiny_run(tmp_path, examples=2, epochs=1) if not flag.startswith("--quantization")]
    train = [environment / "bin" / "rescoldo", "train", *flags, "--quantization=int8", f"--output={tmp_path / 'run'}"]
    done = subprocess.run(train, env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels in use" not in done.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert not [*cache.rglob("*.so")]  # nothing was built
    asked = (
        "import rescoldo; from rescoldo.engine.kernels import choose, build; "
        "choice = choose.choice(); print(rescoldo.__file__, choice.kernels.name, choice.passed_over)"
    )
    python = environment / "bin" / "python"
    answer = subprocess.run(
        [python, "-c", asked], env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = answer.stdout.split(maxsplit=2)
    assert Path(said[0]).is_relative_to(site)
    fastest = usable(cpu.instructions(), vendor=cpu.vendor())
    assert said[1] == (fastest[0].name if fastest else "pytorch")
    if fastest:
        assert said[2].strip() == "{}"
