"""DSPy's optimizers, one row of METHODS each. To add one: a function from a Task to the new module, and a row."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rescoldo.extras import missing
from rescoldo.optimize.config import OptimizeConfig
from rescoldo.optimize.watch import Watch, without_bars
from rescoldo.programs.lm import make_adapter

REFLECTED = 3  # answers per reflection of GEPA
# fields of OptimizeConfig that not every method uses, and the reason in messages
SETTINGS: Mapping[str, str] = {
    "shots": "shows no examples",
    "trials": "does not try several prompts",
    "threshold": "does not show answers of the model itself",
    "budget": "has no budget of answers",
    "reflection_model": "has no instructions written by a model",
}
_NO_LIMIT = 1 << 30  # of errors: a model's bad answers are scored, and must not stop the optimizer


@dataclass(frozen=True)
class Task:
    """The input of an optimizer.

    Attributes:
        dspy: the package, which is imported only when it is needed.
        module: the program to optimize, a dspy.Module.
        shown: examples that prompts may show, as dspy.Example.
        dev: examples for scoring prompts.
        watch: the metric, as DSPy and as GEPA call it.
        threads: number of concurrent requests.
        writer: the dspy.LM that writes instructions.
        failed: whether a model can no longer answer, so that further trials are useless.
    """

    dspy: Any
    config: OptimizeConfig
    module: Any
    shown: list[Any]
    dev: list[Any]
    watch: Watch
    threads: int
    writer: Any
    failed: Callable[[], bool]


@dataclass(frozen=True)
class Method:
    """An optimizer.

    Attributes:
        compile: runs it; returns the optimized module.
        uses: the names in SETTINGS that it uses; others are refused.
    """

    compile: Callable[[Task], Any]
    uses: tuple[str, ...]

    @property
    def writes(self) -> bool:
        """Whether a model writes instructions."""
        return "reflection_model" in self.uses


def _labeled(task: Task) -> Any:
    random.seed(task.config.seed)
    return task.dspy.LabeledFewShot(k=task.config.shots).compile(task.module, trainset=task.shown, sample=True)


def _bootstrap(task: Task) -> Any:
    config = task.config
    optimizer = task.dspy.BootstrapFewShot(
        metric=task.watch.metric,
        metric_threshold=config.threshold,
        max_bootstrapped_demos=config.shots,
        max_labeled_demos=config.shots,
        max_errors=_NO_LIMIT,
    )
    return optimizer.compile(task.module, trainset=task.shown)


def _mipro(task: Task) -> Any:
    """MIPROv2 (arXiv 2406.11695)."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise missing("dspy", "MIPROv2 needs the package optuna", where="--method") from None
    config = task.config
    assert config.trials is not None
    optimizer = task.dspy.MIPROv2(
        metric=task.watch.metric,
        metric_threshold=config.threshold,
        auto=None,
        num_candidates=max(2, min(8, config.trials)),
        max_bootstrapped_demos=config.shots,
        max_labeled_demos=config.shots,
        num_threads=task.threads,
        max_errors=_NO_LIMIT,
        seed=config.seed,
        prompt_model=task.writer,
    )
    return optimizer.compile(
        task.module,
        trainset=task.shown,
        valset=task.dev,
        num_trials=config.trials,
        minibatch=False,
        seed=config.seed,
    )


def _gepa(task: Task) -> Any:
    """GEPA (arXiv 2507.19457): a model reads a few answers with the metric's feedback on them and writes a better
    instruction; instructions that are best on some example of `dev` are developed further.

    GEPA's own checkpoints are pickles and not used; like the other methods it resumes from the cached answers.
    """
    from dspy.teleprompt.gepa import InstructionProposer

    config, dev = task.config, task.dev
    assert config.trials is not None
    # a trial scores its few answers before and after, and, where they are better, all of dev
    budget = config.budget or len(dev) + config.trials * (2 * REFLECTED + len(dev))
    with without_bars():
        optimizer = task.dspy.GEPA(
            metric=task.watch.feedback,
            max_metric_calls=budget,
            reflection_minibatch_size=min(REFLECTED, len(task.shown)),
            reflection_lm=task.writer,
            instruction_proposer=InstructionProposer(adapter=make_adapter()),
            add_format_failure_as_feedback=True,
            num_threads=task.threads,
            seed=config.seed,
            gepa_kwargs={"stop_callbacks": [lambda state: task.failed()]},
        )
        return optimizer.compile(task.module, trainset=task.shown, valset=dev)


METHODS: Mapping[str, Method] = {
    "labeled": Method(_labeled, ("shots",)),
    "bootstrap": Method(_bootstrap, ("shots", "threshold")),
    "mipro": Method(_mipro, ("shots", "threshold", "trials", "reflection_model")),
    "gepa": Method(_gepa, ("trials", "budget", "reflection_model")),
}
