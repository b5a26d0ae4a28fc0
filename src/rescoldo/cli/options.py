"""The options that describe a run, shared by `train`, `doctor` and `plan`, in one list so that they cannot differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from rescoldo.engine.kinds import KINDS, PLAIN
from rescoldo.names import ObjectiveName

if TYPE_CHECKING:
    from rescoldo.training.config import RunConfig

BASICS, LORA, RUN = "What", "How", "Run"
_FROM_ANSWERS, *_FROM_PREFERENCES = get_args(ObjectiveName)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with any of these as fields (lora_r: 8); flags take precedence.",
        rich_help_panel=BASICS,
    ),
]

OPTIONS: dict[str, Any] = {
    "train": Annotated[
        str | None,
        typer.Option(help="Training examples (JSON Lines), or plain text (.txt, .md).", rich_help_panel=BASICS),
    ],
    "val": Annotated[str | None, typer.Option(help="Validation examples (JSON Lines).", rich_help_panel=BASICS)],
    "output": Annotated[
        str | None, typer.Option(help="Output directory; a run in it is resumed.", rich_help_panel=BASICS)
    ],
    "base_model": Annotated[
        str | None,
        typer.Option(
            help="Directory, Hub id, GGUF file, ollama:NAME or sample:smollm2. (default sample:smollm2)",
            rich_help_panel=BASICS,
        ),
    ],
    "from_adapter": Annotated[
        str | None,
        typer.Option(
            "--from",
            "--from-adapter",
            help="Run or PEFT adapter to continue from: its base model, kind, ranks, targets; with a new optimizer and "
            "schedule.",
            rich_help_panel=BASICS,
        ),
    ],
    "replay": Annotated[
        str | None,
        typer.Option(
            help="Old examples to mix in: FILE:SHARE of all training examples (old.jsonl:0.2).", rich_help_panel=BASICS
        ),
    ],
    "role": Annotated[
        str | None, typer.Option(help="Role: name, file or folder. (default ba)", rich_help_panel=BASICS)
    ],
    "preset": Annotated[
        str | None,
        typer.Option(
            help="Source of settings that are not given: tuned (measured, by the model's size) or original "
            "(the original script's). (default tuned)",
            rich_help_panel=LORA,
        ),
    ],
    "epochs": Annotated[
        int | None,
        typer.Option(
            help="Passes over the examples. (default 2; original: 3)",
            rich_help_panel=LORA,
        ),
    ],
    "lr": Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. (default by model size and step size; original: 2e-4)",
            rich_help_panel=LORA,
        ),
    ],
    "batch_size": Annotated[
        int | None, typer.Option(help="Examples per micro-batch. (default 1)", rich_help_panel=LORA)
    ],
    "grad_accum": Annotated[
        int | None,
        typer.Option(help="Micro-batches per step. (default: 4 examples; original: 8)", rich_help_panel=LORA),
    ],
    "lora_r": Annotated[int | None, typer.Option(help="LoRA rank. (default 16; original: 8)", rich_help_panel=LORA)],
    "lora_alpha": Annotated[
        float | None, typer.Option(help="LoRA alpha. (default 4 x rank; original: 32)", rich_help_panel=LORA)
    ],
    "lora_dropout": Annotated[float | None, typer.Option(help="Dropout before A. (default 0.1)", rich_help_panel=LORA)],
    "lora_targets": Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj "
            "(Phi: qkv_proj, o_proj, gate_up_proj, down_proj); or attention, mlp, all. "
            "(default all; original: attention)",
            rich_help_panel=LORA,
        ),
    ],
    "adapter": Annotated[
        str | None,
        typer.Option(help=f"Kind of adapter: {', '.join(KINDS)}. (default {PLAIN})", rich_help_panel=LORA),
    ],
    "lora_ranks": Annotated[
        str | None,
        typer.Option(help="Ranks of single linears or groups: q_proj=8,mlp=32.", rich_help_panel=LORA),
    ],
    "lora_alphas": Annotated[
        str | None, typer.Option(help="Alphas of single linears or groups: q_proj=16,mlp=64.", rich_help_panel=LORA)
    ],
    "lora_layers": Annotated[
        str | None,
        typer.Option(
            help="Adapters in the last N layers only, which saves the backward pass below; or layer numbers: 0,5,7. "
            "(default all)",
            rich_help_panel=LORA,
        ),
    ],
    "lora_plus": Annotated[
        float | None,
        typer.Option(help="LoRA+: B's learning rate as a multiple of A's. (default off)", rich_help_panel=LORA),
    ],
    "loss": Annotated[
        str | None,
        typer.Option(
            help="Answers of a conversation that are learned: all or last. (default all)", rich_help_panel=LORA
        ),
    ],
    "thinking": Annotated[
        str | None,
        typer.Option(
            help="Thinking parts of the answers: keep (learned), drop (left out), mask (seen without loss). "
            "(default keep)",
            rich_help_panel=LORA,
        ),
    ],
    "text": Annotated[
        str | None,
        typer.Option(
            help="Plain text to learn in addition: PATH[,PATH…][:SHARE of all tokens].", rich_help_panel=BASICS
        ),
    ],
    "prompt_loss_weight": Annotated[
        float | None,
        typer.Option(help="Weight of the prompts' tokens in the loss. (default 0)", rich_help_panel=LORA),
    ],
    "balance_classes": Annotated[
        bool | None,
        typer.Option(
            "--balance-classes/--no-balance-classes",
            help="Repeat examples of rarer answers (for labels). (default off)",
            rich_help_panel=LORA,
        ),
    ],
    "max_length": Annotated[
        int | None,
        typer.Option(
            help="Longest example in tokens; longer ones are skipped and listed. (default 2048)", rich_help_panel=LORA
        ),
    ],
    "objective": Annotated[
        str | None,
        typer.Option(
            help=f"Objective: {_FROM_ANSWERS} (learns the answers), or from preferences "
            f"{', '.join(_FROM_PREFERENCES)}. (default {_FROM_ANSWERS})",
            rich_help_panel=LORA,
        ),
    ],
    "beta": Annotated[
        float | None,
        typer.Option(
            help="Strength of the reference model; orpo: weight of the odds ratio. (default 0.1)",
            rich_help_panel=LORA,
        ),
    ],
    "desirable_weight": Annotated[
        float | None, typer.Option(help="kto: weight of the good answers. (default 1)", rich_help_panel=LORA)
    ],
    "undesirable_weight": Annotated[
        float | None, typer.Option(help="kto: weight of the bad answers. (default 1)", rich_help_panel=LORA)
    ],
    "seed": Annotated[
        int | None, typer.Option(help="Seed of order, initial weights and dropout. (default 42)", rich_help_panel=LORA)
    ],
    "quantization": Annotated[
        str | None,
        typer.Option(
            help="Precision of the frozen weights: auto, int8, nf4 (or bnb4), bf16, fp32. (default auto)",
            rich_help_panel=LORA,
        ),
    ],
    "warmup": Annotated[
        float | None,
        typer.Option(
            help="Warm-up: a fraction of all steps, or from 1 on a number of steps. (default 0.08; original: 0.05)",
            rich_help_panel=LORA,
        ),
    ],
    "lr_schedule": Annotated[
        str | None,
        typer.Option(
            help="Learning rate after the warm-up: cosine or linear to 0, or constant, with which a finished run can "
            "be extended. (default cosine)",
            rich_help_panel=LORA,
        ),
    ],
    "weight_decay": Annotated[
        float | None, typer.Option(help="AdamW's weight decay. (default 0.01)", rich_help_panel=LORA)
    ],
    "max_grad_norm": Annotated[
        float | None, typer.Option(help="Gradient clipping: largest norm. (default 1.0)", rich_help_panel=LORA)
    ],
    "shuffle": Annotated[
        bool | None,
        typer.Option(
            "--shuffle/--no-shuffle", help="Shuffle the examples in each epoch. (default shuffle)", rich_help_panel=LORA
        ),
    ],
    "early_stopping": Annotated[
        int | None,
        typer.Option(help="Stop after N epochs without a better validation loss. (default off)", rich_help_panel=LORA),
    ],
    "train_limit": Annotated[int | None, typer.Option(help="Only the first N training examples.", rich_help_panel=RUN)],
    "val_limit": Annotated[int | None, typer.Option(help="Only the first N validation examples.", rich_help_panel=RUN)],
    "max_steps": Annotated[int | None, typer.Option(help="Stop after N optimizer steps.", rich_help_panel=RUN)],
    "checkpoint_minutes": Annotated[
        float | None, typer.Option(help="Minutes between checkpoints. (default 5)", rich_help_panel=RUN)
    ],
    "keep_checkpoints": Annotated[
        int | None, typer.Option(help="Checkpoints kept between epochs. (default 2)", rich_help_panel=RUN)
    ],
    "threads": Annotated[
        int | None, typer.Option(help="CPU threads. (default the cores this process may use)", rich_help_panel=RUN)
    ],
    "memory_gb": Annotated[
        float | None,
        typer.Option(
            help="Memory limit in GB: the lower, the more activations are recomputed. (default the free memory)",
            rich_help_panel=RUN,
        ),
    ],
    "report_to": Annotated[
        str | None,
        typer.Option(
            help="Where to report losses and settings in addition to OUTPUT's files: tensorboard, wandb, mlflow "
            "(comma-separated), none. (default tensorboard)",
            rich_help_panel=RUN,
        ),
    ],
}


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make `command(given, …)` a typer command that also takes OPTIONS: `given` has their values, None for flags that
    were not given."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]

    def wrapper(**values: Any) -> None:
        command({name: values.pop(name) for name in OPTIONS}, **values)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, default=None, annotation=option) for name, option in OPTIONS.items()]
    parameters += [parameter.replace(kind=kind) for parameter in own]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def with_sample_data(given: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """The given fields, or the demo's data and an output directory if there are none and no config file."""
    defaults = {
        "train": "artifacts/synthetic/ba_train_v2_fixed.jsonl",
        "val": "artifacts/synthetic/ba_val_v2_fixed.jsonl",
        "output": "artifacts/run",
    }
    if config is not None:
        return given
    return {name: defaults.get(name) if value is None else value for name, value in given.items()}


def read_config(given: dict[str, Any], config: Path | None) -> RunConfig:
    """The run's config from flags and file.

    Raises:
        RescoldoError: a value is missing, unknown or out of range.
    """
    from rescoldo.files import allow_cache_near
    from rescoldo.training.config import make_config

    made = make_config(given, config)
    allow_cache_near(made.output)
    return made
