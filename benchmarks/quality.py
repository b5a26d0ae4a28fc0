"""What each precision costs: the whole LoRA gradient and the loss against float32, and what training comes to.

python -m benchmarks.quality --workload smollm2 --output benchmarks/out/quality-smollm2.json
python -m benchmarks.quality --epochs 2 --output …    # also trains in bf16 and int8: validation losses
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.needs import require, writable
from benchmarks.plot import bars
from benchmarks.workloads import TRAIN, VAL
from benchmarks.workloads import examples as read_examples
from rescoldo.base import open_base
from rescoldo.base.model import BaseModel
from rescoldo.engine.config import LINEARS
from rescoldo.engine.kernels.blocks import NF4, QuantizedMatrix
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.engine.model import LoraModel
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.engine.weights import TensorSource
from rescoldo.files import write_json
from rescoldo.system.cgroup import available_threads

LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.0, targets=LINEARS)


class Numbers(TensorSource):
    """A base's weights as numbers, in no blocks; with `rounded` its linears are rounded to nf4."""

    def __init__(self, base: BaseModel, *, rounded: bool) -> None:
        self.base, self.rounded = base, rounded

    def names(self) -> list[str]:
        return self.base.tensors.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.tensors.shape(name)

    def get(self, name: str) -> torch.Tensor:
        weight = self.base.tensors.get(name)
        return (
            TorchKernels().blocks_decode([in_nf4(weight)]) if self.rounded and name.endswith("_proj.weight") else weight
        )


def in_nf4(weight: torch.Tensor) -> QuantizedMatrix:
    """weight (out, in) rounded to nf4."""
    packed, scales = TorchKernels().nf4_pack(weight)
    return QuantizedMatrix(NF4, packed, (weight.shape[0], weight.shape[1]), scales)


def gradient(
    base: BaseModel, precision: str, examples: list[Example], calibration: list[Example]
) -> tuple[float, torch.Tensor]:
    """The mean loss and the gradient of all adapter weights, one behind the other; B is random, so that A has one."""
    model = LoraModel.load(base, precision, LORA, seed=7, calibration=calibration)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.parameters.items():
        if name.endswith("lora_B"):
            parameter.normal_(0.0, 0.02, generator=generator)
    model.sync()
    step = GradientStep(model, examples, step=0, seed=0)
    loss = sum(step.micro_batch([i]) for i in range(len(examples))) / step.total
    return loss, torch.cat([g.flatten() for _, g in sorted(step.finish().items())]).double()


def trained(precision: str, epochs: int) -> list[float]:
    """Validation loss after each epoch of the sample's own settings, one seed for all precisions."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rescoldo", "train", "--train", str(TRAIN), "--val", str(VAL)]
        command += ["--output", folder, "--quantization", precision, "--epochs", str(epochs)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        info = json.loads((Path(folder) / "training_info.json").read_text())
    return [epoch["val_loss"] for epoch in info["losses"]]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two vectors."""
    return float(a @ b / (a.norm() * b.norm()))


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=["smollm2"], default="smollm2")
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=0, help="also train for so many, in each precision")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    require("matplotlib")
    writable(args.output)
    threads = available_threads()
    torch.set_num_threads(threads)
    base, data = open_base("sample:smollm2"), read_examples("sample:smollm2")
    examples, calibration = data[: args.examples], data[-4:]
    numbers, rounded = (replace(base, tensors=Numbers(base, rounded=rounded)) for rounded in (False, True))
    exact_loss, exact = gradient(base, "fp32", examples, calibration)
    own_loss, own = gradient(rounded, "fp32", examples, calibration)
    runs: list[dict[str, Any]] = []
    for precision in ("bf16", "int8", "nf4"):
        loss, ours = gradient(numbers if precision == "nf4" else base, precision, examples, calibration)
        reference, wanted = (own, own_loss) if precision == "nf4" else (exact, exact_loss)
        run: dict[str, Any] = {
            "precision": precision,
            "cosine": cosine(ours, reference),
            "loss": loss,
            "loss_fp32": wanted,
        }
        runs.append({**run, "cosine_unquantized": cosine(ours, exact)})
        if args.epochs and precision != "nf4":  # the sample's own blocks are taken as they are: nf4 would be int8
            runs[-1]["val_losses"] = trained(precision, args.epochs)
    document = {
        "workload": args.workload, "machine": describe(threads), "peer": "the same engine in float32",
        "examples": len(examples), "runs": runs,
    }  # fmt: skip
    write_json(args.output, document)
    lost = {run["precision"]: 1 - run["cosine"] for run in runs}
    bars(args.output, "gradient: 1 - cosine with float32 of the same weights", "", lost)
    table = Table(title=f"gradient of {len(examples)} examples")
    for column in ("precision", "cosine with its weights in fp32", "with the model's", "loss", "fp32's loss"):
        table.add_column(column, justify="right")
    if args.epochs:
        table.add_column("validation loss by epoch")
    for run in runs:
        cells = [str(run["precision"]), f"{run['cosine']:.5f}", f"{run['cosine_unquantized']:.5f}"]
        cells += [f"{run['loss']:.4f}", f"{run['loss_fp32']:.4f}"]
        cells += [", ".join(f"{loss:.4f}" for loss in run.get("val_losses", []))] if args.epochs else []
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
