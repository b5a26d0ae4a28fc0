"""What the tests of the exports share: runs with a random adapter that changes every answer, made without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from rescoldo.adapter import write_adapter
from rescoldo.base import open_base
from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import new_parameters
from rescoldo.engine.types import LoraConfig

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=LINEARS)
CONCEPTS = ["A tool library", "Una app para reservar canchas de pádel", "漢字を学ぶアプリ", "Ein Café, 24 h geöffnet"]
# a longrope model whose pretrained context has room for the role's prompt
PHI_LONG = {"rope": "longrope-part", "max_position_embeddings": 8192, "original_max_position_embeddings": 4096}


def make_run(path: Path, base: str, *, lora: LoraConfig | None = None, size: float = 0.1, seed: int = 3) -> Path:
    """A run on `base` (as a user would name it); `size` is the spread of B. Returns `path`."""
    opened = open_base(base)
    lora = lora or replace(LORA, targets=opened.config.linears)
    generator = torch.Generator().manual_seed(seed)
    parameters = new_parameters(opened.config, lora, seed)
    for name, tensor in parameters.items():
        if name.endswith("lora_B"):
            tensor.normal_(0.0, size, generator=generator)
        elif name.endswith("lora_magnitude_vector"):
            weight = opened.tensors.get(f"{name.removesuffix('.lora_magnitude_vector')}.weight").float()
            tensor.copy_(weight.norm(dim=1) * (0.7 + 0.6 * torch.rand(len(tensor), generator=generator)))
    path.mkdir(parents=True, exist_ok=True)
    write_adapter(path, parameters, lora, base)
    val = path / "val.jsonl"
    val.write_text("".join(json.dumps({"concept": concept}, ensure_ascii=False) + "\n" for concept in CONCEPTS))
    info = {
        "base_model": base,
        "base_fingerprint": opened.fingerprint(),
        "quantization": "fp32",
        "role": "ba",
        "val_dataset": str(val),
        "lora_r": lora.rank,
        "lora_alpha": lora.alpha,
    }
    (path / "training_info.json").write_text(json.dumps(info))
    return path
