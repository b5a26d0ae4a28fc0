"""Names: the objectives, other programs' names for settings, and the prefixes of models behind a server."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

ObjectiveName = Literal["sft", "dpo", "ipo", "orpo", "kto"]  # the rows of training.objectives

# other programs' and papers' names → the names here, the likeliest first (a command has only some of them)
SYNONYMS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "step_size": ("lr",),
    "num_epochs": ("epochs",),
    "num_train_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "epoch": ("epochs",),
    "train_batch_size": ("batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "micro_batch_size": ("batch_size",),
    "bs": ("batch_size",),
    "gradient_accumulation_steps": ("grad_accum",),
    "gradient_accumulation": ("grad_accum",),
    "grad_accum_steps": ("grad_accum",),
    "accumulate": ("grad_accum",),
    "lora_rank": ("lora_r",),
    "rank": ("lora_r",),
    "r": ("lora_r",),
    "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "target_modules": ("lora_targets",),
    "lora_target_modules": ("lora_targets",),
    "lora_target": ("lora_targets",),
    "lora_modules": ("lora_targets",),
    "use_dora": ("adapter",),
    "use_rslora": ("adapter",),
    "dora": ("adapter",),
    "rslora": ("adapter",),
    "finetuning_type": ("adapter",),
    "fine_tune_type": ("adapter",),
    "peft_type": ("adapter",),
    "rank_pattern": ("lora_ranks",),
    "alpha_pattern": ("lora_alphas",),
    "layers_to_transform": ("lora_layers",),
    "num_layers": ("lora_layers",),
    "loraplus_lr_ratio": ("lora_plus",),
    "loraplus": ("lora_plus",),
    "lr_scheduler_type": ("lr_schedule",),
    "lr_scheduler": ("lr_schedule",),
    "adapter_name_or_path": ("from_adapter",),
    "resume_adapter_file": ("from_adapter",),
    "mix": ("replay",),
    "from": ("from_adapter",),
    "model": ("base_model", "baseline"),
    "model_name": ("base_model", "model"),
    "model_name_or_path": ("base_model", "model"),
    "base": ("base_model", "model"),
    "train_data": ("train",),
    "train_file": ("train",),
    "train_dataset": ("train",),
    "training_data": ("train",),
    "data": ("train", "dataset"),
    "dataset": ("train",),
    "val_data": ("val",),
    "val_file": ("val",),
    "val_dataset": ("val",),
    "valid": ("val",),
    "valid_data": ("val",),
    "validation": ("val",),
    "validation_file": ("val",),
    "eval_dataset": ("val", "dataset"),
    "eval_file": ("val", "dataset"),
    "output_dir": ("output",),
    "out": ("output",),
    "out_dir": ("output",),
    "save_dir": ("output",),
    "adapter_path": ("output",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "seq_len": ("max_length",),
    "cutoff_len": ("max_length",),
    "sequence_len": ("max_length",),
    "ctx_size": ("context", "max_length"),
    "context_length": ("context", "max_length"),
    "precision": ("quantization",),
    "dtype": ("quantization",),
    "bits": ("quantization",),
    "load_in_4bit": ("quantization",),
    "load_in_8bit": ("quantization",),
    "bf16": ("quantization",),
    "fp16": ("quantization",),
    "quantize": ("quantization",),
    "warmup_steps": ("warmup",),
    "warmup_ratio": ("warmup",),
    "clip": ("max_grad_norm",),
    "gradient_clip": ("max_grad_norm",),
    "gradient_clip_val": ("max_grad_norm",),
    "patience": ("early_stopping",),
    "early_stopping_patience": ("early_stopping",),
    "max_train_samples": ("train_limit",),
    "max_eval_samples": ("val_limit", "limit"),
    "max_samples": ("train_limit", "limit"),
    "iters": ("max_steps",),
    "max_iters": ("max_steps",),
    "save_steps": ("checkpoint_minutes",),
    "save_every": ("checkpoint_minutes",),
    "save_total_limit": ("keep_checkpoints",),
    "num_threads": ("threads",),
    "cpus": ("threads",),
    "num_workers": ("threads", "concurrency"),
    "memory": ("memory_gb",),
    "max_memory": ("memory_gb",),
    "tracker": ("report_to",),
    "logger": ("report_to",),
    "log_with": ("report_to",),
    "tracking": ("report_to",),
    "max_tokens": ("max_new_tokens", "max_tokens"),
    "n_predict": ("max_new_tokens", "max_tokens"),
    "num_predict": ("max_new_tokens", "max_tokens"),
    "temp": ("temperature",),
    "random_seed": ("seed",),
    "overwrite": ("restart", "force"),
    "overwrite_output_dir": ("restart",),
    "fresh": ("restart",),
    "background": ("detach",),
    "daemon": ("detach",),
    "adapter": ("finetuned",),
    "format": ("to",),
    "prompt": ("concept",),
    "address": ("host",),
    "bind": ("host",),
    "key": ("api_key",),
    "nnodes": ("nodes",),
}


SERVERS = ("openai:", "ollama:")  # prefixes of models that a server answers for


def is_server(spec: str) -> bool:
    """Whether a server answers for this model (openai:MODEL@URL, ollama:NAME)."""
    return spec.startswith(SERVERS)


def similar(name: str, known: Iterable[str]) -> str:
    """The name in `known` that another program calls `name`, or that is spelled similarly; "" if there is none.

    Case, leading dashes, and dashes versus underscores are ignored; the result is spelled as in `known`.
    """
    plain = {_plain(one): one for one in known}
    wanted = _plain(name)
    for candidate in (wanted, *SYNONYMS.get(wanted, ())):
        if candidate in plain:
            return plain[candidate]
    if wanted in SYNONYMS:
        return ""
    close = get_close_matches(wanted, list(plain), n=1, cutoff=0.6)
    return plain[close[0]] if close else ""


def _plain(name: str) -> str:
    return name.strip("-").replace("-", "_").lower()
