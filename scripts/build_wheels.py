#!/usr/bin/env python3
"""Makes what is published, from Linux: an sdist, a wheel without libraries, and one wheel with them for each platform.

    pip install -r requirements/wheels.txt
    scripts/build_wheels.py [--out dist] [--platform linux-x86_64 …]

`python -m build` makes the sdist and the wheel for any platform (py3-none-any), which builds its kernels on first use.
A platform's wheel is that wheel, with a library for each of the platform's instruction sets, cross-compiled by zig, and
the platform's tag; pip prefers it. Each library is checked before it is packed: its format and CPU, its glibc symbols,
what it needs, and that it exports what kernels.h declares; then each wheel: its tag, its RECORD, what is in it.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT))

from scripts.binaries import Binary, read  # noqa: E402

from rescoldo.engine.kernels.build import INSTRUCTION_SETS, PACKAGED, InstructionSet, build  # noqa: E402

HEADER = ROOT / "src/rescoldo/engine/kernels/c/kernels.h"
GLIBC = (2, 28)


@dataclass(frozen=True)
class Platform:
    """One wheel.

    Attributes:
        name: on the command line.
        target: zig's name of it.
        tag: the wheel's platform tag.
        machine: of the instruction sets, as in build.py.
        without: instruction sets that no machine of the platform has, or that its system does not offer.
        needs: libraries that its libraries may need.
    """

    name: str
    target: str
    tag: str
    machine: str
    needs: frozenset[str]
    without: frozenset[str] = frozenset()

    @property
    def rows(self) -> list[InstructionSet]:
        """The instruction sets in the wheel."""
        return [row for row in INSTRUCTION_SETS if row.machine == self.machine and row.name not in self.without]


# the dynamic loader's is for variables that each thread has of its own
_GLIBC = frozenset({"libc.so.6", "libm.so.6", "libpthread.so.0"})
_MACOS = frozenset({"/usr/lib/libSystem.B.dylib"})
_LINKERS = frozenset({"__dso_handle", "_mh_dylib_header"})  # zig's linker adds them to a Mach-O file
PLATFORMS = (
    Platform(
        "linux-x86_64", "x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64", "x86_64", _GLIBC | {"ld-linux-x86-64.so.2"}
    ),
    Platform(
        "linux-aarch64",
        "aarch64-linux-gnu.2.28",
        "manylinux_2_28_aarch64",
        "aarch64",
        _GLIBC | {"ld-linux-aarch64.so.1"},
    ),
    Platform("macos-arm64", "aarch64-macos.11.0", "macosx_11_0_arm64", "aarch64", _MACOS),
    # the last Macs with Intel's CPUs have AVX-512 at most; amx asks Linux for its registers
    Platform(
        "macos-x86_64",
        "x86_64-macos.11.0",
        "macosx_11_0_x86_64",
        "x86_64",
        _MACOS,
        frozenset({"amx", "avx512bf16", "avxvnni"}),
    ),
)


def declared() -> frozenset[str]:
    """The functions that kernels.h declares between its visibility pragmas."""
    text = HEADER.read_text(encoding="utf-8")
    exported = text.split("visibility push(default)")[1].split("visibility pop")[0]
    exported = re.sub(r"//[^\n]*", "", exported)
    return frozenset(re.findall(r"(\w+)\([^()]*\);", exported))


def faults(found: Binary, platform: Platform) -> list[str]:
    """What is wrong with a library for `platform`; [] if nothing."""
    wrong = []
    kind = "Mach-O" if "macos" in platform.target else "ELF"
    if (found.kind, found.machine) != (kind, platform.machine):
        wrong.append(f"is {found.kind} for {found.machine}, not {kind} for {platform.machine}")
    exported = found.exported - _LINKERS
    if exported != declared():
        wrong.append(f"exports {sorted(exported - declared())} too many, lacks {sorted(declared() - exported)}")
    if stray := found.needed - platform.needs:
        wrong.append(f"needs {sorted(stray)}")
    if newer := sorted(version for version in found.glibc if version > GLIBC):
        wrong.append(f"needs glibc {newer[-1][0]}.{newer[-1][1]}")
    if kind == "Mach-O" and platform.machine == "aarch64" and not found.signed:
        wrong.append("is not signed: Apple's ARM CPUs run nothing that has no signature")
    if kind == "Mach-O" and (found.minimum is None or found.minimum > (11, 0)):
        wrong.append(f"needs macOS {found.minimum}")
    return wrong


def libraries(platform: Platform, folder: Path) -> None:
    """Compile and check the platform's libraries into `folder`."""
    for row in platform.rows:
        library = folder / f"{row.name}.so"
        build(platform.target, row, library)
        wrong = faults(read(library), platform)
        if wrong:
            raise SystemExit(f"error: {row.name} for {platform.name} {'; '.join(wrong)}")
        print(f"  {row.name}: {library.stat().st_size / 1e3:.0f} kB, checked", flush=True)


def platform_wheel(pure: Path, platform: Platform, out: Path) -> Path:
    """The wheel `pure` with the platform's libraries and tag."""
    print(platform.name, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        _run("wheel", "unpack", "--dest", scratch, pure)
        (tree,) = Path(scratch).iterdir()
        libraries(platform, tree / PACKAGED.relative_to(ROOT / "src"))
        (about,) = tree.glob("*.dist-info/WHEEL")
        text = about.read_text(encoding="utf-8")
        text = text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
        text = re.sub(r"^Tag: .*$", f"Tag: py3-none-{platform.tag}", text, flags=re.MULTILINE)
        about.write_text(text, encoding="utf-8")
        _run("wheel", "pack", "--dest-dir", out, tree)
    (made,) = out.glob(f"*-py3-none-{platform.tag}.whl")
    if wrong := wheel_faults(made, platform):
        raise SystemExit(f"error: {made.name} {'; '.join(wrong)}")
    return made


def wheel_faults(wheel: Path, platform: Platform) -> list[str]:
    """What is wrong with the wheel that pip would install on `platform`; [] if nothing."""
    wrong = []
    name, version, *_ = wheel.name.split("-")
    about = f"{name}-{version}.dist-info"
    if wheel.name != f"{name}-{version}-py3-none-{platform.tag}.whl":
        wrong.append(f"is called {wheel.name}")
    folder = PACKAGED.relative_to(ROOT / "src")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        said = archive.read(f"{about}/WHEEL").decode().splitlines()
        for line in (f"Tag: py3-none-{platform.tag}", "Root-Is-Purelib: false"):
            if line not in said or sum(other.startswith(line.split(":")[0]) for other in said) != 1:
                wrong.append(f"does not say just {line!r}")
        records = {row[0]: row[1] for row in csv.reader(archive.read(f"{about}/RECORD").decode().splitlines())}
        if stray := {*records} ^ {info.filename for info in archive.infolist() if not info.is_dir()}:
            wrong.append(f"its RECORD does not list what is in it: {sorted(stray)}")
        inside = {path for path in archive.namelist() if Path(path).suffix in (".so", ".dylib", ".dll", ".pyd")}
        expected = {f"{folder.as_posix()}/{row.name}.so": row for row in platform.rows}
        if inside != {*expected}:
            wrong.append(f"has the libraries {sorted(inside)}, not {sorted(expected)}")
        for path in inside:
            data = archive.read(path)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            if records.get(path) != f"sha256={digest}":
                wrong.append(f"its RECORD has another hash of {path}")
            library = Path(scratch) / "library.so"
            library.write_bytes(data)
            wrong += [f"{path} {fault}" for fault in faults(read(library), platform)]
    return wrong


def make(out: Path, names: Iterable[str], *, isolated: bool = True) -> list[Path]:
    """The sdist, the pure wheel and the wheels of the platforms of these names, in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("rescoldo-*.whl"), *out.glob("rescoldo-*.tar.gz")):
        old.unlink()
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would pack what an older tree has left there
    _run("build", *([] if isolated else ["--no-isolation"]), "--outdir", out, ROOT)
    (pure,) = out.glob("*-py3-none-any.whl")
    made = [platform_wheel(pure, platform, out) for platform in PLATFORMS if platform.name in names]
    return [*out.glob("*.tar.gz"), pure, *made]


def _run(module: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: python -m {module} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    known = [platform.name for platform in PLATFORMS]
    parser = argparse.ArgumentParser(description="Make the sdist and the wheels.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--platform", choices=known, action="append", help="only this one (several times: these)")
    parser.add_argument("--no-isolation", action="store_true", help="with the setuptools that is installed here")
    asked = parser.parse_args()
    for made in make(asked.out.resolve(), asked.platform or known, isolated=not asked.no_isolation):
        print(made)


if __name__ == "__main__":
    main()
