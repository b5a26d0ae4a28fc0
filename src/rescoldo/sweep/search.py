"""The choice of the next trial: a function of the space, the seed and the history, so that a sweep can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rescoldo.extras import missing
from rescoldo.sweep.space import Choice, Space, Value, grid

ATTEMPTS = 50  # to find values that have not been tried


@dataclass(frozen=True)
class Tried:
    """One trial's values and score; None if it failed."""

    params: dict[str, Value]
    score: float | None


def next_params(space: Space, history: Sequence[Tried], trials: int | None, seed: int) -> dict[str, Value] | None:
    """The next trial's values; None if there is nothing left to try.

    Args:
        trials: number of trials that Optuna chooses; None: the whole grid.

    Raises:
        RescoldoError: the space is not a grid.
    """
    known = [tried.params for tried in history]
    if trials is None:
        return next((params for params in grid(space) if params not in known), None)
    if len(history) >= trials:
        return None
    for attempt in range(ATTEMPTS):
        params = _suggest(space, history, seed + 1000 * attempt + len(history))
        if params not in known:
            return params
    return None


def require_optuna() -> None:
    """Check early that Optuna is installed.

    Raises:
        RescoldoError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        otherwise = "leave --trials out to try the whole grid"
        raise missing("sweep", "needs the package optuna", where="--trials", otherwise=otherwise) from None


def _suggest(space: Space, history: Sequence[Tried], seed: int) -> dict[str, Value]:
    """The suggestion of Optuna's TPE sampler after this history. Its state is rebuilt each time: a trial takes
    minutes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = {}
    for name, part in space.items():
        if isinstance(part, Choice):
            distributions[name] = optuna.distributions.CategoricalDistribution(part.values)
        elif part.whole:
            distributions[name] = optuna.distributions.IntDistribution(int(part.low), int(part.high), log=part.log)
        else:
            distributions[name] = optuna.distributions.FloatDistribution(part.low, part.high, log=part.log)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed % (1 << 32)))
    state = optuna.trial.TrialState
    for tried in history:
        if set(tried.params) == set(distributions) and all(
            _contains(distributions[name], value) for name, value in tried.params.items()
        ):
            done = state.FAIL if tried.score is None else state.COMPLETE
            study.add_trial(
                optuna.trial.create_trial(
                    params=tried.params, distributions=distributions, value=tried.score, state=done
                )
            )
    return {name: study_value for name, study_value in study.ask(distributions).params.items()}  # noqa: C416


def _contains(distribution: Any, value: Value) -> bool:
    """Whether a value is in a distribution: trials from before a change of the space may not be."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False
