"""`rescoldo train`: flags over config file over preset over defaults, then one call of rescoldo.train.train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rescoldo.errors import RescoldoError

BASICS, LORA, RUN = "What", "How", "Run"


def train(
    train: Annotated[str | None, typer.Option(help="Training examples (JSON Lines).", rich_help_panel=BASICS)] = None,
    val: Annotated[str | None, typer.Option(help="Validation examples (JSON Lines).", rich_help_panel=BASICS)] = None,
    output: Annotated[
        str | None, typer.Option(help="Directory that the run writes; a run in it is resumed.", rich_help_panel=BASICS)
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Directory, Hub id, GGUF file, ollama:NAME or sample:smollm2. (default sample:smollm2)",
            rich_help_panel=BASICS,
        ),
    ] = None,
    role: Annotated[str | None, typer.Option(help="What is taught. (default ba)", rich_help_panel=BASICS)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with any of these as fields (lora_r: 8); flags win.", rich_help_panel=BASICS),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the examples. (default 3)", rich_help_panel=LORA)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. (default 2e-4)", rich_help_panel=LORA)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a micro-batch. (default 1)", rich_help_panel=LORA)
    ] = None,
    grad_accum: Annotated[
        int | None, typer.Option(help="Micro-batches an optimizer step. (default 8)", rich_help_panel=LORA)
    ] = None,
    lora_r: Annotated[int | None, typer.Option(help="LoRA rank. (default 8)", rich_help_panel=LORA)] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="LoRA alpha. (default 32)", rich_help_panel=LORA)] = None,
    lora_dropout: Annotated[
        float | None, typer.Option(help="Dropout before A. (default 0.1)", rich_help_panel=LORA)
    ] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; "
            "or attention, mlp, all. (default attention)",
            rich_help_panel=LORA,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest example in tokens; longer ones are left out and named. (default 2048)", rich_help_panel=LORA
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides order, first weights and dropout. (default 42)", rich_help_panel=LORA)
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="The frozen weights: auto, int8, nf4 (or bnb4), bf16, fp32. (default auto)", rich_help_panel=LORA
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Warm-up: a share of all steps, or from 1 on steps. (default 0.05)", rich_help_panel=LORA),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="AdamW's weight decay. (default 0.01)", rich_help_panel=LORA)
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="The gradient's norm is clipped to this. (default 1.0)", rich_help_panel=LORA)
    ] = None,
    shuffle: Annotated[
        bool | None,
        typer.Option("--shuffle/--no-shuffle", help="New order each epoch. (default shuffle)", rich_help_panel=LORA),
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(help="Stop after N epochs without a better validation loss. (default off)", rich_help_panel=LORA),
    ] = None,
    train_limit: Annotated[
        int | None, typer.Option(help="Only the first N training examples.", rich_help_panel=RUN)
    ] = None,
    val_limit: Annotated[
        int | None, typer.Option(help="Only the first N validation examples.", rich_help_panel=RUN)
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after N optimizer steps.", rich_help_panel=RUN)] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Minutes between checkpoints. (default 5)", rich_help_panel=RUN)
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="Checkpoints kept between epochs. (default 2)", rich_help_panel=RUN)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. (default the cores this process may use)", rich_help_panel=RUN)
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start anew; the old run is kept as OUTPUT.old-N.", rich_help_panel=RUN)
    ] = False,
    json_: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON summary on standard output; messages on standard error.", rich_help_panel=RUN
        ),
    ] = False,
) -> None:
    """Fine-tune with LoRA. The same command again resumes an interrupted run; --restart starts anew.

    Exit code 0: finished. 1: failed. 2: something asked for cannot be. 3: another process works in OUTPUT.
    128 + N: stopped by signal N and saved.
    """
    given = dict(locals())
    del given["config"], given["restart"], given["json_"]
    run(given, config, restart=restart, as_json=json_)


def run(given: dict[str, Any], config: Path | None, *, restart: bool, as_json: bool, adapter_bin: bool = False) -> None:
    """Train with the fields in `given` (None: not given) and leave with the exit code."""
    from rescoldo.train.config import check_paths, make_config

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a log in a plain encoding is no reason to fail
    run_config = make_config(given, config)
    check_paths(run_config)  # before torch is imported, which takes seconds

    from rich.console import Console

    from rescoldo.train.progress import Reporter
    from rescoldo.train.start import train as start

    reporter = Reporter(Console(stderr=as_json, highlight=False))
    try:
        result = start(run_config, restart=restart, adapter_bin=adapter_bin, reporter=reporter)
    except RescoldoError as error:
        if as_json:
            print(json.dumps({"status": "failed", "output": str(run_config.output), "error": str(error)}))
        raise
    if as_json:
        print(json.dumps(result.summary(), ensure_ascii=False))
    if result.signal:
        raise typer.Exit(128 + result.signal)
