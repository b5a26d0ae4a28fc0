"""The end of a run: adapter, tokenizer and training_info.json, each written atomically, training_info.json last."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import asdict
from typing import Any

import psutil

from rescoldo.adapter import CALIBRATION_FILE, CONFIG_FILE, WEIGHTS_FILE, write_adapter, write_bin, write_calibration
from rescoldo.data.chat_template import thinks
from rescoldo.data.dataset import Dataset
from rescoldo.engine.weights import Tensors
from rescoldo.files import sha256, write_json
from rescoldo.run.layout import INFO_FILE, METRICS
from rescoldo.system import cpu
from rescoldo.training.checkpoint import Position
from rescoldo.training.identity import versions
from rescoldo.training.metrics import resumptions, wall_seconds
from rescoldo.training.parts import Parts, lora_config
from rescoldo.training.prepare import Prepared

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_results(
    prepared: Prepared, position: Position, best: Tensors, calibration: Tensors, parts: Parts, adapter_bin: bool
) -> dict[str, Any]:
    """Write those result files that do not exist yet. Returns the content of training_info.json.

    Args:
        best: the best epoch's adapter.
        calibration: LoraModel.frozen_state(), stored with the adapter so that it is scored on the same base weights.

    Raises:
        OSError: from the system; training_info.json does not exist then, so the run does not count as finished.
    """
    config = prepared.config
    output = config.output
    lora = lora_config(config, prepared.base.config.n_layers)
    write_adapter(output, best, lora, config.base_model, wrapped=bool(prepared.base.wrapper))
    parts.save_tokenizer(prepared.tokenizer, output)
    names = [CONFIG_FILE, WEIGHTS_FILE, METRICS, *(name for name in TOKENIZER_FILES if (output / name).exists())]
    if adapter_bin:
        write_bin(output)
    if write_calibration(output, calibration):
        names.append(CALIBRATION_FILE)
    info = training_info(prepared, position, best)
    info["files"] = {name: sha256(output / name) for name in sorted(names)}
    write_json(output / INFO_FILE, info)
    return info


def training_info(prepared: Prepared, position: Position, best: Tensors) -> dict[str, Any]:
    """The original script's keys, followed by this project's."""
    config, base, train, val = prepared.config, prepared.base, prepared.train, prepared.val
    lora = lora_config(config, base.config.n_layers)
    trainable = sum(tensor.numel() for name, tensor in best.items() if lora.trains(name))
    total = base.config.total_params + sum(tensor.numel() for tensor in best.values())
    return {
        "base_model": config.base_model,
        "train_dataset": str(config.train),
        "val_dataset": str(config.val),
        "train_examples": len(train.examples),
        "val_examples": len(val.examples),
        "epochs": config.epochs,
        "learning_rate": config.lr,
        "batch_size": config.batch_size,
        "grad_accum_steps": config.grad_accum,
        "effective_batch_size": config.batch_size * config.grad_accum,
        "lora_r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "max_length": config.max_length,
        "seed": config.seed,
        "train_limit": config.train_limit,
        "val_limit": config.val_limit,
        "max_steps": config.max_steps,
        "quantization": config.quantization,
        "trainable_params": trainable,
        "total_params": total,
        "trainable_percentage": 100 * trainable / total,
        "role": prepared.role.name,
        "role_sha256": prepared.role.digest,
        "lora_targets": list(config.lora_targets),
        "steps": position.step,
        "batch_steps": position.batches,
        "tokens": position.tokens,
        "target_tokens": position.targets,
        "losses": [asdict(losses) for losses in position.losses],
        "val_loss_before": position.loss_before,
        "best_epoch": position.best_epoch,
        "adapter_of_epoch": position.best_epoch,
        "stopped_early": position.stopped_early,
        "train_overruns": [str(one) for one in train.overruns],
        "val_overruns": [str(one) for one in val.overruns],
        "train_sha256": train.file_digest,
        "val_sha256": val.file_digest,
        "base_fingerprint": base.fingerprint(),
        "base_shapes": {**asdict(base.config), "windows": list(base.config.windows)},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_seconds": round(wall_seconds(config.output), 1),
        "resumptions": resumptions(config.output),
        "versions": versions(),
        "host": host(),
        "config": config.model_dump(mode="json"),
        **({"parent": prepared.origin.document()} if prepared.origin else {}),
        "chat_date": prepared.identity.get("chat date"),
        **({"thinks": True} if thinks(prepared.tokenizer) else {}),
        **_of_text(train, val, position),
        "identity": prepared.identity,
    }


def _of_text(train: Dataset, val: Dataset, position: Position) -> dict[str, Any]:
    """The entries of a run with plain text: its windows, and the perplexity of validation text."""
    noted: dict[str, Any] = {"text_windows": train.texts} if train.texts else {}
    if val.texts and val.is_text and position.losses:
        best = position.losses[position.best_epoch - 1].val_loss
        noted["val_perplexity"] = math.exp(min(best, 700.0))
    return noted


def host() -> dict[str, Any]:
    """The machine: processor, cores, memory in bytes, system."""
    return {
        "cpu": cpu.model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }
