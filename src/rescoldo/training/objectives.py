"""The objectives of a run: loss, form of the data, and default settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rescoldo.errors import RescoldoError
from rescoldo.training.config import RunConfig, flag

if TYPE_CHECKING:
    from rescoldo.engine.objective import Objective


@dataclass(frozen=True)
class Row:
    """An objective.

    Attributes:
        title: its name for people.
        make: makes the engine's objective for a run; None: cross-entropy on the answers.
        form: the form of preference data, a key of data.preferences.FORMS; None: answers to learn.
        settings: fields that only this objective (and others that list them) may use.
        defaults: field → value, overriding the base model's preset for fields that the user does not give.
        unit: the word for one example.
        several: whether several machines can share its steps.
        least: minimum number of examples in a step.
    """

    title: str
    make: Callable[[RunConfig], Objective] | None
    form: str | None = None
    settings: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "example"
    several: bool = False
    least: int = 1

    @property
    def reading(self) -> dict[str, str]:
        """Additional arguments for data.forms."""
        return {"form": self.form} if self.form else {}


def _dpo(config: RunConfig) -> Objective:
    from rescoldo.engine.preference import dpo

    return dpo(config.beta)


def _ipo(config: RunConfig) -> Objective:
    from rescoldo.engine.preference import ipo

    return ipo(config.beta)


def _orpo(config: RunConfig) -> Objective:
    from rescoldo.engine.preference import orpo

    return orpo(config.beta)


def _kto(config: RunConfig) -> Objective:
    from rescoldo.engine.preference import kto

    return kto(config.beta, config.desirable_weight, config.undesirable_weight)


# Without dropout the first step compares the model with itself, as in TRL's trainers. docs/preferences.md has the
# experiments behind these values.
_SETTINGS = {"epochs": 2, "grad_accum": 4, "lora_dropout": 0.0}

OBJECTIVES: dict[str, Row] = {
    "sft": Row(
        "the answers",
        None,
        settings=("loss", "thinking", "prompt_loss_weight", "balance_classes", "text"),
        several=True,
    ),
    "dpo": Row("direct preference optimization", _dpo, "pairs", ("beta",), {"lr": 5e-5, **_SETTINGS}, "preference"),
    "ipo": Row("identity preference optimization", _ipo, "pairs", ("beta",), {"lr": 5e-5, **_SETTINGS}, "preference"),
    "orpo": Row("odds ratio preference optimization", _orpo, "pairs", ("beta",), dict(_SETTINGS), "preference"),
    "kto": Row(
        "Kahneman-Tversky optimization",
        _kto,
        "judged",
        ("beta", "desirable_weight", "undesirable_weight"),
        {"lr": 5e-5, **_SETTINGS},
        "judgement",
        least=2,
    ),
}


def objective_of(config: RunConfig) -> Objective | None:
    """The engine's objective; None for cross-entropy."""
    make = OBJECTIVES[config.objective].make
    return make(config) if make else None


def check_settings(config: RunConfig) -> None:
    """Refuse settings of objectives that are not this run's.

    Raises:
        RescoldoError: one is given.
    """
    every = {name for row in OBJECTIVES.values() for name in row.settings}
    for name in sorted(every.intersection(config.model_fields_set).difference(OBJECTIVES[config.objective].settings)):
        owners = ", ".join(key for key, row in OBJECTIVES.items() if name in row.settings)
        raise RescoldoError(
            f"is a setting of the objectives {owners}, but this run's is {config.objective}",
            where=flag(name),
            fix=f"leave it out, or give --objective {owners.split(', ')[0]}",
        )


def check_step(config: RunConfig) -> None:
    """Check that steps are large enough for the objective.

    Raises:
        RescoldoError: they are not.
    """
    row, size = OBJECTIVES[config.objective], config.batch_size * config.grad_accum
    if size < row.least:
        raise RescoldoError(
            f"{config.objective} compares the answers of a step: expected at least {row.least} examples, got {size}",
            where=flag("grad_accum"),
            fix=f"--grad-accum {row.least} or more",
        )


def apply_defaults(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Fill fields that the user did not give with the objective's defaults.

    Returns:
        The config, and the fields that were set.
    """
    return config.filled(OBJECTIVES[config.objective].defaults)
