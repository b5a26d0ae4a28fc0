"""What tests/arm/test_arm.py runs on the emulated machine: python -m tests.arm.inside LIBRARIES FLAGS-OF-TRAIN…

Prints what it saw as JSON in its last line.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from rescoldo.base import open_base
from rescoldo.cli.main import app
from rescoldo.engine.config import LINEARS
from rescoldo.engine.kernels import build, choose
from rescoldo.engine.kernels.native import NativeKernels
from rescoldo.engine.kernels.selftest import disagreement
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.engine.model import LoraModel
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import LoraConfig
from rescoldo.system import cpu
from tests.engine.common import cosine, example, gradient, randomize


def run(*words: str) -> int:
    """A command of the program, in this process; its exit code."""
    print("$ rescoldo", *words, file=sys.stderr, flush=True)
    try:
        return app(list(words), standalone_mode=False) or 0
    except SystemExit as ended:
        return int(ended.code or 0)


@contextlib.contextmanager
def terminated_at_the_first_step() -> Iterator[None]:
    """Inside, SIGTERM comes when the first optimizer step's gradients are there."""
    finish = GradientStep.finish

    def and_terminate(self, *given, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, *given, **named)

    GradientStep.finish = and_terminate
    try:
        yield
    finally:
        GradientStep.finish = finish


def main() -> None:
    build.PACKAGED = Path(sys.argv[1])
    torch.set_num_threads(2)
    names = [row.name for row in build.usable(cpu.instructions())]
    native = {name: NativeKernels(name) for name in names}
    results = {"machine": platform.machine(), "kernels": {name: disagreement(native[name]) for name in names}}

    examples = [example(40, 20, seed=seed) for seed in (1, 2)]
    (base,) = (flag.removeprefix("--base-model=") for flag in sys.argv[2:] if flag.startswith("--base-model="))
    # not `tiny_lora`, which makes a model with transformers first: importing that takes half a minute here
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS)
    model = LoraModel.load(open_base(base), "int8", lora, seed=7, calibration=examples[:1])
    randomize(model)
    results["gradient"] = {}
    for name in names:
        twins = TorchKernels()
        twins.qmax = native[name].qmax
        choose.use(twins)
        _, expected = gradient(model, examples)
        choose.use(native[name])
        results["gradient"][name] = cosine(gradient(model, examples)[1], expected)
    choose.use(None)

    chosen = choose.choice()
    results["chosen"], results["passed_over"] = chosen.kernels.name, chosen.passed_over

    output = Path(os.environ["OUTPUT"])
    flags = [*sys.argv[2:], f"--output={output}"]
    with terminated_at_the_first_step():
        results["interrupted"] = run("train", *flags)
    results["finished before"] = (output / "training_info.json").exists()
    results["resumed"] = run("train", *flags)
    results["info"] = json.loads((output / "training_info.json").read_text(encoding="utf-8"))
    results["export"] = run("export", str(output), "--to", "gguf-adapter", "--output", str(output / "exported"))
    results["exported"] = sorted(path.name for path in (output / "exported").rglob("*") if path.is_file())
    print(json.dumps(results))


if __name__ == "__main__":
    main()
