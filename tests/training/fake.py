"""A tiny stand-in for the engine: the same interface in plain autograd, deterministic, about a millisecond a step.

Run as a program (`python -m tests.training.fake OUTPUT SEED …`) it is the process that the SIGKILL tests kill.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from rescoldo.base.model import BaseModel
from rescoldo.base.tokenizer import DirectoryTokenizer
from rescoldo.data.dataset import Dataset, digest
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.engine.weights import TensorSource
from rescoldo.role import Role
from rescoldo.training.config import RunConfig
from rescoldo.training.parts import Parts
from rescoldo.training.progress import Reporter

DECODER = DecoderConfig(
    architecture="llama",
    vocab_size=32,
    hidden_size=8,
    intermediate_size=12,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    norm_eps=1e-5,
    rope_theta=10000.0,
    max_positions=4096,
)


class NoTensors(TensorSource):
    def names(self) -> list[str]:
        return []

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def get(self, name: str) -> torch.Tensor:
        raise KeyError(name)


class FakeBase(BaseModel):
    def tokenizer(self) -> Any:
        return SimpleNamespace()

    def fingerprint(self) -> str:
        return "f" * 64


def open_base(spec: str) -> BaseModel:
    return FakeBase(spec, Path("."), DECODER, NoTensors(), (), DirectoryTokenizer(Path("."), 0))


class FakeModel:
    def __init__(self, lora: LoraConfig, seed: int, calibration: torch.Tensor) -> None:
        self.config, self.lora, self.calibration = DECODER, lora, calibration
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(
            DECODER.vocab_size, DECODER.hidden_size, generator=torch.Generator().manual_seed(1)
        )
        self.parameters: dict[str, torch.Tensor] = {}
        for layer in range(DECODER.n_layers):
            for name in lora.targets:
                out, into = DECODER.linear_shape(name, layer)
                part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
                key = f"model.layers.{layer}.{part}.{name}"
                rank = lora.rank_of(name)
                self.parameters[f"{key}.lora_A"] = torch.randn(rank, into, generator=generator) / into
                self.parameters[f"{key}.lora_B"] = torch.zeros(out, rank)

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        return self.parameters

    def frozen_state(self) -> dict[str, torch.Tensor]:
        return {"calibration": self.calibration}

    def sync(self) -> None:
        pass

    def loss(self, example: Example, dropout: torch.Generator | None) -> torch.Tensor:
        tokens = torch.tensor(example.tokens)
        hidden = self.embedding[tokens[example.n_prompt - 1 : -1]] * self.calibration
        for key in [key.removesuffix(".lora_A") for key in self.parameters if key.endswith(".lora_A")]:
            a, b = self.parameters[key + ".lora_A"], self.parameters[key + ".lora_B"]
            x = F.pad(hidden, (0, max(0, a.shape[1] - hidden.shape[1])))[:, : a.shape[1]]
            if dropout is not None and self.lora.dropout:
                x = x * (torch.rand(x.shape, generator=dropout) >= self.lora.dropout) / (1 - self.lora.dropout)
            y = (x @ a.T) @ b.T * self.lora.scale_of("q_proj")
            hidden = torch.tanh(hidden + F.pad(y, (0, max(0, 8 - y.shape[1])))[:, :8])
        return F.cross_entropy(hidden @ self.embedding.T, tokens[example.n_prompt :], reduction="sum")


def load_model(
    base: BaseModel,
    precision: str,
    lora: LoraConfig,
    *,
    seed: int,
    calibration: list[Example] | None = None,
    frozen_state: dict[str, torch.Tensor] | None = None,
    on_progress: Any = None,
) -> FakeModel:
    scale = frozen_state["calibration"] if frozen_state else torch.tensor([len((calibration or [])[0].tokens) / 10.0])
    return FakeModel(lora, seed, scale)


class FakeStep:
    delay = 0.0  # seconds a micro-batch

    def __init__(
        self, model: FakeModel, examples: list[Example], *, step: int, seed: int, mine: Any = None, on_ready: Any = None
    ) -> None:
        self.on_ready = on_ready
        self.model, self.examples, self.step, self.seed = model, examples, step, seed
        self.targets = sum(example.n_targets for example in examples)
        self.sums = {key: torch.zeros_like(tensor) for key, tensor in model.parameters.items()}

    def micro_batch(self, indices: list[int]) -> float:
        time.sleep(self.delay)
        total = 0.0
        for i in indices:
            dropout = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step * 1009 + i)
            leaves = {key: tensor.requires_grad_(True) for key, tensor in self.model.parameters.items()}
            loss = self.model.loss(self.examples[i], dropout)
            for key, gradient in zip(
                leaves, torch.autograd.grad(loss / self.targets, list(leaves.values())), strict=True
            ):
                self.sums[key] += gradient
            for tensor in leaves.values():
                tensor.requires_grad_(False)
            total += loss.item()
        return total

    def finish(self) -> dict[str, torch.Tensor]:
        if self.on_ready:
            self.on_ready(self.sums)
        return self.sums

    def state(self) -> dict[str, torch.Tensor]:
        return {f"sum.{key}": tensor for key, tensor in self.sums.items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.sums = {key.removeprefix("sum."): tensor for key, tensor in state.items()}


def evaluate_loss(model: FakeModel, examples: list[Example]) -> list[tuple[float, int]]:
    time.sleep(FakeStep.delay)
    with torch.no_grad():
        return [(model.loss(example, None).item(), example.n_targets) for example in examples]


def read_dataset(
    path: Path, role: Role, tokenizer: Any, max_length: int, limit: int | None, records: Any = None, *_: Any
) -> Dataset:
    """One example a line: token numbers separated by blanks, the first a prompt of one token."""
    lines = path.read_text().split("\n")[:limit]
    examples = [Example(tuple(map(int, line.split())), 1) for line in lines if line]
    names = [f"{path.name}:{i + 1}" for i in range(len(examples))]
    return Dataset(path, examples, names, [], digest(examples), "0" * 64)


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).write_text("{}")


PARTS = Parts(open_base, read_dataset, load_model, FakeStep, evaluate_loss, save_tokenizer)


def write_data(folder: Path, n_train: int = 13, n_val: int = 6) -> tuple[Path, Path]:
    """Two dataset files of short sequences that count upwards, so that there is something to learn."""
    paths = (folder / "train.txt", folder / "val.txt")
    for path, n, offset in zip(paths, (n_train, n_val), (0, 7), strict=True):
        rows = [[(offset + 3 * i + k) % 32 for k in range(4 + i % 3)] for i in range(n)]
        path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    return paths


def config(folder: Path, output: Path, **fields: Any) -> RunConfig:
    train, val = write_data(folder)
    defaults: dict[str, Any] = {
        "base_model": "fake",
        "preset": "original",
        "epochs": 2,
        "lr": 0.05,
        "grad_accum": 2,
        "batch_size": 2,
        "lora_r": 2,
        "threads": 1,
        "quantization": "fp32",
        "train": train,
        "val": val,
        "output": output,
    }
    return RunConfig(**(defaults | fields))


class Silent(Reporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        from io import StringIO

        from rich.console import Console

        self.stream = StringIO()
        super().__init__(Console(file=self.stream, width=200))

    @property
    def text(self) -> str:
        return self.stream.getvalue()


def main() -> None:
    """python -m tests.training.fake FOLDER OUTPUT DELAY CHECKPOINT_MINUTES"""
    from rescoldo.training.start import train

    folder, output, delay, minutes = sys.argv[1:]
    FakeStep.delay = float(delay)
    result = train(
        config(Path(folder), Path(output), checkpoint_minutes=float(minutes), epochs=3), parts=replace(PARTS)
    )
    sys.exit(128 + result.signal if result.signal else 0)


if __name__ == "__main__":
    main()
