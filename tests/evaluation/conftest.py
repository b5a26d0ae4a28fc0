"""A tiny random model, an adapter for it as a finished run, and a dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rescoldo.adapter import write_adapter
from rescoldo.engine.types import LoraConfig
from tests.base.make_models import tiny_hf
from tests.data.examples import record, write

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("base"), "llama", max_position_embeddings=4096, intermediate_size=128)


@pytest.fixture(scope="session")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rescoldo.base import open_base
    from rescoldo.engine.model import new_parameters

    path = tmp_path_factory.mktemp("run")
    opened = open_base(str(base))
    generator = torch.Generator().manual_seed(3)
    parameters = new_parameters(opened.config, LORA, 0)
    parameters = {name: torch.randn(t.shape, generator=generator) for name, t in parameters.items()}
    write_adapter(path, parameters, LORA, str(base))
    train = write(path / "train.jsonl", record(8), record(9))
    info = {
        "base_model": str(base),
        "quantization": "fp32",
        "train_dataset": str(train),
        "base_fingerprint": opened.fingerprint(),
    }
    (path / "training_info.json").write_text(json.dumps(info))
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "val.jsonl", *[{"concept": record(i)["concept"]} for i in range(3)])
