"""Training a finished run for more epochs: allowed where its first epochs would have been exactly the same."""

from __future__ import annotations

from typing import Any

from rescoldo.files import quote
from rescoldo.invocation import program
from rescoldo.run.layout import INFO_FILE
from rescoldo.training.checkpoint import Position, UnresumableError
from rescoldo.training.config import RunConfig
from rescoldo.training.identity import changed
from rescoldo.training.optimizer import lr_factor, warmup_steps
from rescoldo.training.plan import Plan
from rescoldo.units import count


def extends(was: dict[str, Any], now: dict[str, Any], config: RunConfig, examples: int, at: Position) -> bool:
    """Whether the run identified by `was`, now at position `at`, can continue as the run `now` with another number of
    epochs: nothing else differs, and each step made so far is the same in both.

    Args:
        config: the settings of the requested run.
        examples: number of training examples.

    Raises:
        UnresumableError: only the number of epochs differs, but the steps would have been different.
    """
    if changed(was, now) != ["epochs"] or not isinstance(was.get("epochs"), int):
        return False
    before, after = Plan(config.model_copy(update={"epochs": was["epochs"]}), examples), Plan(config, examples)
    begun = at.epoch + (1 if at.step > at.epoch * after.steps_per_epoch or at.evaluated else 0)
    same = after.epochs >= begun and at.step <= min(before.total_steps, after.total_steps)
    if same and _rates(config, before, at.step) == _rates(config, after, at.step):
        return True
    raise UnresumableError(
        f"{config.output} holds a run of {count(was['epochs'], 'epoch')}, but {config.epochs} are requested: "
        + (
            f"its learning rate ({config.lr_schedule}, warm-up {config.warmup:g}) would have been different in the "
            f"{count(at.step, 'step')} made so far"
            if same
            else f"it has already trained {begun}"
        ),
        where="--epochs",
        fix=_remedy(config, was["epochs"]),
    )


def _rates(config: RunConfig, plan: Plan, steps: int) -> list[float]:
    total = plan.total_steps
    warmup = warmup_steps(config.warmup, total)
    return [lr_factor(step, warmup, total, config.lr_schedule) for step in range(steps)]


def _remedy(config: RunConfig, before: int) -> str:
    if not (config.output / INFO_FILE).exists():
        return f"--epochs {before} finishes it; --restart trains {count(config.epochs, 'epoch')} from the start"
    if config.epochs < before:
        return f"--epochs {before} keeps it; --restart trains {count(config.epochs, 'epoch')} from the start"
    more, longer = config.epochs - before, config.output.with_name(f"{config.output.name}-more")
    return (
        f"{program()} train --from {quote(config.output)} --epochs {more} --output {quote(longer)} … continues from "
        f"its adapter with a new schedule; --restart trains {count(config.epochs, 'epoch')} from the start; a run with "
        "--lr-schedule constant, and --warmup in steps, can be extended"
    )
