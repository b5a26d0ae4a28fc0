"""How much of a CPU's multiply pipes the kernels' inner loops keep busy, by llvm-mca's models of CPUs.

python -m benchmarks.mca --output benchmarks/out/mca.json

Each instruction set's products are compiled to assembly by the wheels' compiler (requirements/wheels.txt). The loop of
a function with the most multiply instructions is that of the full tile. llvm-mca (Debian: apt install llvm-19; before
version 15 it has no model of Alder Lake's own) says how many cycles it takes, with data in the first-level cache. The
rate of the pipes is that of the same instruction on independent registers, with nothing beside it; of vpmaddwd, with
the vpaddd that sums its results.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.needs import writable
from rescoldo.engine.kernels.build import InstructionSet, assembly, instruction_set
from rescoldo.files import write_json

TARGETS = {"x86_64": "x86_64-linux-gnu.2.28", "aarch64": "aarch64-linux-gnu.2.28"}
TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
MODELS = {
    "avx2": ("znver3", "alderlake"),
    "avxvnni": ("alderlake",),
    "avx512": ("icelake-server", "znver4"),
    "avx512bf16": ("znver4",),
    "neon": ("apple-m1", "neoverse-v1"),
    "neoni8mm": ("neoverse-v1",),
}
# the file and what the function's name begins with
SOURCES = {
    "int8 product": ("int8.c", ("product_",)),
    "attention": ("attention.c", ("gemm",)),
    "float32 product": ("int8.c", ("gemm_f32", "outer_piece", "input_rows")),
}
_FLOAT = {"x86_64": "vfmadd231ps", "aarch64": "fmla"}
# the multiply instruction of a product, and how many multiplications a 16-byte part of a register has
MULTIPLIES = {
    ("avx2", "int8 product"): ("vpmaddwd", 8),
    ("avx2", "attention"): ("vpmaddwd", 8),
    ("avxvnni", "int8 product"): ("vpdpbusd", 16),
    ("avxvnni", "attention"): ("vpdpwssd", 8),
    ("avx512", "int8 product"): ("vpdpbusd", 16),
    ("avx512", "attention"): ("vpdpwssd", 8),
    ("avx512bf16", "int8 product"): ("vpdpbusd", 16),
    ("avx512bf16", "attention"): ("vdpbf16ps", 8),
    ("neon", "int8 product"): ("sdot", 16),
    ("neon", "attention"): ("fmla", 4),
    ("neoni8mm", "int8 product"): ("smmla", 32),
    ("neoni8mm", "attention"): ("bfdot", 8),
}
PRODUCTS = tuple(SOURCES)


@dataclass(frozen=True)
class Loop:
    """The inner loop of a product.

    Attributes:
        isa, product: whose.
        multiply: its multiply instruction.
        lines: its instructions, as the assembler takes them.
        multiplies: how many of them multiply.
        per_multiply: multiplications of one.
    """

    isa: str
    product: str
    multiply: str
    lines: tuple[str, ...]
    multiplies: int
    per_multiply: int

    @property
    def instructions_per_product(self) -> float:
        """Instructions for each multiply-accumulate."""
        return len(self.lines) / (self.multiplies * self.per_multiply)


def loops(text: str, comment: str, functions: tuple[str, ...]) -> list[list[str]]:
    """The instructions of each innermost loop of the functions whose names begin so in `text`, an assembly file: from a
    label to the branch back to it with no label in between. `comment` is what begins one."""
    found, label, body, inside = [], "", list[str](), False
    for line in text.splitlines():
        bare = line.split(comment, 1)[0].strip()
        if start := re.fullmatch(r"([.\w$]+):", bare):
            label, body = start[1], []
            if not label.startswith("."):
                inside = label.startswith(functions)
        elif bare and not bare.startswith("."):
            body.append(bare)
            if re.match(r"(j\w+|b\.?\w*|cbn?z|tbn?z)\s", bare) and re.split(r"[\s,]+", bare)[-1] == label:
                found += [body] if inside else []
                body = []
    return found


def inner_loop(isa: InstructionSet, product: str, text: str) -> Loop:
    """The loop in `text` with the most multiply instructions of `product`.

    Raises:
        LookupError: there is none.
    """
    word, each = MULTIPLIES.get((isa.name, product), (_FLOAT[isa.machine], 4))

    def count(body: list[str]) -> int:
        return sum(bool(re.search(rf"\b{word}\b", line)) for line in body)

    best = max(loops(text, "#" if isa.machine == "x86_64" else "//", SOURCES[product][1]), key=count, default=[])
    if not best or not count(best):
        raise LookupError(f"{isa.name}: no loop of {word}")
    line = next(line for line in best if re.search(rf"\b{word}\b", line))
    width = 4 if "%zmm" in line else 2 if "%ymm" in line else 1
    return Loop(isa.name, product, word, tuple(best), count(best), each * width)


def inner_loops(name: str) -> list[Loop]:
    """The loops of the products of the instruction set of that name, as the wheels' compiler makes them.

    Raises:
        BuildError: the compiler is not there, or it failed.
    """
    isa, texts = instruction_set(name), dict[str, str]()
    with tempfile.TemporaryDirectory() as scratch:
        for source in {source for source, _ in SOURCES.values()}:
            made = Path(scratch) / f"{source}.s"
            assembly(TARGETS[isa.machine], isa, source, made)
            texts[source] = made.read_text(encoding="utf-8", errors="replace")
    return [inner_loop(isa, product, texts[source]) for product, (source, _) in SOURCES.items()]


def alone(loop: Loop) -> list[str]:
    """Its multiply instruction on independent registers, as often as hides its latency; and the addition that sums its
    results, where that is an instruction of its own."""
    line = next(line for line in loop.lines if re.search(rf"\b{loop.multiply}\b", line))
    if "%" not in line:
        parts = line.split(",")  # the same form: vectors, or one element
        forms = [re.sub(r"\bv\d+", f"v{n}", part) for part, n in zip(parts[1:], (30, 31), strict=True)]
        return [",".join([re.sub(r"\bv\d+", f"v{i}", parts[0]), *forms]) for i in range(24)]
    kind, prefix = "zmm" if "%zmm" in line else "ymm", "{vex} " if "{vex}" in line else ""
    if loop.multiply != "vpmaddwd":
        return [f"{prefix}{loop.multiply} %{kind}14, %{kind}15, %{kind}{i}" for i in range(14)]
    return [f"{word} %ymm{i}" for i in range(12) for word in ("vpmaddwd %ymm14, %ymm15,", f"vpaddd %ymm13, %ymm{i},")]


def cycles(lines: list[str] | tuple[str, ...], machine: str, model: str, mca: str) -> float:
    """Of one pass over these instructions, over and over again.

    Raises:
        SystemExit: llvm-mca refuses them.
    """
    features = "+dotprod,+i8mm,+bf16" if machine == "aarch64" else "+avxvnni"
    # all branches go to the loop's beginning
    body = [re.sub(r"^((?:j\w+|b\.?\w*|cbn?z|tbn?z)\b.*?)[.\w$]+$", r"\1loop", line) for line in lines]
    passes = 200
    command = [mca, f"-mtriple={TRIPLES[machine]}", f"-mcpu={model}", f"-iterations={passes}", "-instruction-info=0"]
    if machine == "aarch64" or any("{vex}" in line for line in lines):
        command.append(f"-mattr={features}")
    done = subprocess.run(
        [*command, "-resource-pressure=0"], input="\n".join(["loop:", *body, ""]), capture_output=True,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    found = re.search(r"^Total Cycles:\s+(\d+)", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise SystemExit(f"error: {mca} failed: {done.stderr.strip()}")
    return int(found[1]) / passes


def measure(loop: Loop, model: str, mca: str) -> dict[str, object]:
    """A row of the table."""
    machine = instruction_set(loop.isa).machine
    unhindered = alone(loop)
    taken = cycles(loop.lines, machine, model, mca)
    peak = sum(loop.multiply in line for line in unhindered) / cycles(unhindered, machine, model, mca)
    return {
        "model": model,
        **{name: value for name, value in asdict(loop).items() if name != "lines"},
        "instructions": len(loop.lines),
        "instructions_per_product": loop.instructions_per_product,
        "cycles": taken,
        "multiplies_per_cycle": loop.multiplies / taken,
        "pipes": peak,
        "share": loop.multiplies / taken / peak,
    }


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    newest = next((name for name in ("llvm-mca-19", "llvm-mca-16", "llvm-mca") if shutil.which(name)), "llvm-mca")
    parser.add_argument("--mca", default=newest, help=f"the program (default: {newest})")
    parser.add_argument("--show", action="store_true", help="the loops' instructions, too")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    writable(args.output)
    if not shutil.which(args.mca):
        raise SystemExit(f"error: {args.mca} is not installed: apt install llvm-19")
    rows = []
    for name, models in MODELS.items():
        for loop in inner_loops(name):
            rows += [measure(loop, model, args.mca) for model in models]
            if args.show:
                print(f"{name}, {loop.product}:", *loop.lines, sep="\n    ")
    write_json(args.output, {"mca": args.mca, "loops": rows})
    table = Table(title="inner loops")
    for column in (
        "instruction set",
        "product",
        "multiply",
        "model",
        "instructions",
        "cycles",
        "per cycle",
        "pipes",
        "share",
    ):
        table.add_column(column)
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("isa", "product", "multiply", "model", "instructions")),
            f"{row['cycles']:.1f}", f"{row['multiplies_per_cycle']:.2f}", f"{row['pipes']:.2f}", f"{row['share']:.0%}",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
