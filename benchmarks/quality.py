"""What each precision costs: the whole LoRA gradient and the loss against float32, on examples of the task.

python -m benchmarks.quality --workload smollm2 --output benchmarks/out/quality-smollm2.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from rescoldo.base import open_base
from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import LoraModel
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.files import write_json
from rescoldo.role import get_role
from rescoldo.train.parts import read_dataset
from rescoldo.train.preset import available_threads

TRAIN = Path("artifacts/synthetic/ba_train_v2_fixed.jsonl")
LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.0, targets=LINEARS)


def gradient(precision: str, examples: list[Example], calibration: list[Example]) -> tuple[float, torch.Tensor]:
    """The mean loss and the gradient of all adapter weights, one behind the other; B is random, so that A has one."""
    model = LoraModel.load(open_base("sample:smollm2"), precision, LORA, seed=7, calibration=calibration)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.parameters.items():
        if name.endswith("lora_B"):
            parameter.normal_(0.0, 0.02, generator=generator)
    model.sync()
    step = GradientStep(model, examples, step=0, seed=0)
    loss = sum(step.micro_batch([i]) for i in range(len(examples))) / step.n_targets
    return loss, torch.cat([g.flatten() for _, g in sorted(step.finish().items())]).double()


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=["smollm2"], default="smollm2")
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    threads = available_threads()
    torch.set_num_threads(threads)
    data = read_dataset(TRAIN, get_role("ba"), open_base("sample:smollm2").tokenizer(), 2048, None).examples
    examples, calibration = data[: args.examples], data[-4:]
    exact_loss, exact = gradient("fp32", examples, calibration)
    runs: list[dict[str, Any]] = []
    for precision in ("bf16", "int8", "nf4"):
        loss, ours = gradient(precision, examples, calibration)
        cosine = float(ours @ exact / (ours.norm() * exact.norm()))
        runs.append({"precision": precision, "cosine": cosine, "loss": loss, "loss_fp32": exact_loss})
    document = {
        "workload": args.workload, "machine": describe(threads), "peer": "the same engine in float32",
        "examples": len(examples), "runs": runs,
    }  # fmt: skip
    write_json(args.output, document)
    table = Table(title=f"gradient of {len(examples)} examples against fp32")
    for column in ("precision", "cosine", "loss", "fp32's loss"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(run["precision"], f"{run['cosine']:.5f}", f"{run['loss']:.4f}", f"{exact_loss:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
