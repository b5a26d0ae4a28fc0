"""Fine-tune the business analyst role: the command line of an earlier script; the work is in `rescoldo train`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rescoldo.cli.main import run_app
from rescoldo.cli.train import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    train: Annotated[str, typer.Option(help="Training examples.")] = "artifacts/synthetic/ba_train_v2_fixed.jsonl",
    val: Annotated[str, typer.Option(help="Validation examples.")] = "artifacts/synthetic/ba_val_v2_fixed.jsonl",
    output: Annotated[
        str, typer.Option(help="Output directory; a run in it is resumed.")
    ] = "artifacts/finetuning/mistral-7b-ba-lora-cpu-bf16",
    base_model: Annotated[
        str, typer.Option(help="Directory, Hub id, GGUF file, ollama:NAME or sample:smollm2.")
    ] = "artifacts/models/mistral-7b-instruct",
    epochs: Annotated[int | None, typer.Option(help="Default 3.")] = None,
    lr: Annotated[float | None, typer.Option(help="Default 2e-4.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default 1.")] = None,
    grad_accum: Annotated[int | None, typer.Option(help="Default 8.")] = None,
    lora_r: Annotated[int | None, typer.Option(help="Default 8.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Default 32.")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="Default 0.1.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Default 2048.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default 42.")] = None,
    quantization: Annotated[str | None, typer.Option(help="auto, int8, nf4 (bnb4), bf16, fp32. (default auto)")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Only the first N training examples.")] = None,
    val_limit: Annotated[int | None, typer.Option(help="Only the first N validation examples.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after N optimizer steps.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start anew; the old run is kept as OUTPUT.old-N.")
    ] = False,
) -> None:
    """Fine-tune a language model with LoRA to write a business analyst's requirements.

    The same command again resumes an interrupted run. The defaults are the original's. More settings, and
    defaults that were measured: the `rescoldo train` command.
    """
    given = {name: value for name, value in locals().items() if name != "restart"} | {"preset": "original"}
    run(given, None, restart=restart, as_json=False, adapter_bin=True, heading_prefix="FASE 8.4: ")


if __name__ == "__main__":
    sys.exit(run_app(app))
