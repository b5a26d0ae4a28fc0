"""Make a better prompt with DSPy's optimizers: examples to show (not GEPA), and instructions (MIPROv2, GEPA), chosen by
the score."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rescoldo.allowed import check_number
from rescoldo.data import read_records
from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.evaluation.evaluation import Console, evaluate
from rescoldo.evaluation.open import CONSTRAINED, Opener
from rescoldo.extras import missing
from rescoldo.files import sha256, write_atomic, write_json
from rescoldo.models.cache import PredictionCache
from rescoldo.models.server import ServerOptions
from rescoldo.optimize.watch import Watch, dspy_log, without_bars
from rescoldo.programs import import_dspy
from rescoldo.programs.lm import MAX_BATCH, Desk, make_adapter, make_lm
from rescoldo.programs.predictor import ProgramPredictor
from rescoldo.programs.program import PROGRAM, RECORD, Program, new_program, read_program
from rescoldo.role import Role, get_role
from rescoldo.run.lock import RunLock
from rescoldo.version import __version__

METHODS = ("labeled", "bootstrap", "mipro", "gepa")
WRITES = ("mipro", "gepa")  # those in which a model writes instructions
WRITING_TEMPERATURE = 1.0  # as DSPy has it: instructions are to differ
REFLECTED = 3  # answers that GEPA reflects on at a time


@dataclass(frozen=True)
class OptimizeConfig:
    """What is optimized, and how.

    Attributes:
        model: spec of the model under the program.
        method: labeled (DSPy's LabeledFewShot), bootstrap (BootstrapFewShot), mipro (MIPROv2), gepa (GEPA).
        shots: examples that the program shows at most; of them as many as can be bootstrapped, with bootstrap, mipro.
        trials: prompts that MIPROv2 and GEPA try.
        budget: answers that GEPA may score; None: as many as `trials` prompts may need.
        reflection_model: spec of the model that writes instructions (mipro, gepa); None: `model`, unconstrained.
        dev: share of the training set that prompts are scored on, not shown.
        threshold: score from which on a model's own answer may become an example.
        limit: only the first so many training examples.
    """

    model: str
    train: str
    method: str = "mipro"
    shots: int = 3
    trials: int = 10
    budget: int | None = None
    reflection_model: str | None = None
    dev: float = 0.2
    threshold: float = 0.8
    limit: int | None = None
    temperature: float = 0.7
    max_new_tokens: int = 2048
    seed: int = 42
    role: str = "ba"
    quantization: str = "auto"


def optimize(
    config: OptimizeConfig,
    output: Path | str,
    *,
    server: ServerOptions | None = None,
    restart: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Optimize a role's prompt; write the program and how it was made into `output`.

    The model's answers are kept while it works, and DSPy asks the same questions in the same order for the same seed:
    so an interrupted call resumes where it was. A finished one returns what is there.

    Returns:
        The content of optimize.json: model, method, scores {"before", "after"} on the dev part, demos, config, …

    Raises:
        RescoldoError: dspy is missing, config or files are not as they must be, the model cannot answer, or `output`
            holds a program that was made otherwise (restart replaces it).
    """
    _check(config)
    dspy = import_dspy()
    role, folder = get_role(config.role).ready(), Path(output)
    records = read_records(config.train, role)[: config.limit]
    shown, dev = _split(records, config)
    identity = {
        **asdict(config),
        "train_sha256": sha256(Path(config.train)),
        "role": role.identity,
        "dspy": dspy.__version__,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RescoldoError(f"cannot be made: {error.strerror or error}", where=f"--output {folder}") from None
    with RunLock(folder):
        if not restart and (finished := _finished(folder, identity)):
            return finished
        opener = Opener(role, records=records, quantization=config.quantization, server=server)
        chat = opener.chat(config.model)
        # what is held to the role's form cannot write instructions: its model, unconstrained, does
        writer = opener.chat(config.reflection_model or config.model.removeprefix(CONSTRAINED))
        started = time.time()
        cache = PredictionCache(folder / "answers.partial.jsonl")
        sampling = Sampling(config.temperature, 1.0, config.max_new_tokens, config.seed)
        workers = (server or ServerOptions()).concurrency

        def score(program: Program, name: str) -> dict[str, Any]:
            predictor = ProgramPredictor("", program, chat, role, name, workers=workers, cache=cache)
            part = evaluate(predictor, dev, role, sampling, cache=cache, console=console)
            if console:
                console.say(f"{name}: {part['scores']['mean']:.1%} on {len(dev)} examples that it does not show")
            return dict(part["scores"])

        program = new_program(role)
        before = score(program, "before")
        watch = Watch(role, records, console)
        with (
            Desk(chat, workers=workers, cache=cache, on_progress=watch.tokens) as desk,
            Desk(writer, workers=workers, cache=cache, on_progress=watch.tokens) as writing,
            dspy_log(console),
            dspy.context(lm=make_lm(desk, sampling), adapter=make_adapter()),
        ):
            try:
                made = _compile(
                    dspy, config, program.module, _examples(dspy, role, shown), _examples(dspy, role, dev), watch,
                    threads=MAX_BATCH if chat.batches else workers,
                    writer=make_lm(writing, replace(sampling, temperature=WRITING_TEMPERATURE)),
                    gone=lambda: bool(desk.failure or writing.failure),
                )  # fmt: skip
            except Exception as error:  # DSPy's own errors are many
                if isinstance(error, RescoldoError):
                    raise
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise desk.failure or writing.failure or RescoldoError(
                    f"the optimizer failed: {why}", where=f"--method {config.method}",
                    fix="the same command resumes; --reflection-model names another model to write the instructions",
                    exit_code=EXIT_FAILURE,
                ) from error  # fmt: skip
            if failure := desk.failure or writing.failure:  # DSPy takes it for a bad answer
                raise failure
            asked = {"answers": desk.asked + writing.asked, "answers_kept_from_before": desk.known + writing.known}
        _write_program(made, folder / PROGRAM)
        after = score(read_program(folder / PROGRAM, role), "after")
        record = {
            "rescoldo": __version__,
            "model": config.model,
            "model_described": chat.describe(),
            "reflection_model_described": writer.describe() if config.method in WRITES else None,
            "method": config.method,
            "scores": {"before": before, "after": after},
            "shown_examples": len(shown),
            "dev_examples": len(dev),
            "demos": len(made.demos),
            "instructions": made.signature.instructions,
            "program": PROGRAM,
            "program_sha256": sha256(folder / PROGRAM),
            **asked,
            "wall_seconds": round(time.time() - started, 1),
            "identity": identity,
        }
        write_json(folder / RECORD, record)
        cache.remove()
    return record


def _check(config: OptimizeConfig) -> None:
    if config.method not in METHODS:
        raise RescoldoError(f"there is no method {config.method!r}", where="--method", fix=", ".join(METHODS))
    if config.budget is not None and config.method != "gepa":
        raise RescoldoError(
            f"{config.method} has no budget of answers", where="--budget", fix="--method gepa; --trials for mipro"
        )
    if config.reflection_model and config.method not in WRITES:
        raise RescoldoError(
            f"with {config.method} no model writes instructions", where="--reflection-model",
            fix=f"--method {' or '.join(WRITES)}, or leave it out",
        )  # fmt: skip
    if (config.reflection_model or "").startswith(CONSTRAINED):
        raise RescoldoError(
            "instructions are not of the role's form", where=f"--reflection-model {config.reflection_model}",
            fix="leave out constrained:",
        )  # fmt: skip
    for flag, value, least, most in (
        ("shots", config.shots, 1, 64), ("trials", config.trials, 1, 1000), ("dev", config.dev, 0.01, 0.9),
        ("threshold", config.threshold, 0, 1), ("limit", config.limit, 2, 1 << 31),
        ("budget", config.budget, 1, 1_000_000),
    ):  # fmt: skip
        check_number(f"--{flag}", value, whole=isinstance(least, int) and flag != "threshold", ge=least, le=most)


def _split(records: Sequence[dict[str, Any]], config: OptimizeConfig) -> tuple[list[Any], list[Any]]:
    """The examples to show, and those to score on: drawn by the seed, in the file's order."""
    if len(records) < 2:
        raise RescoldoError("two examples are the least: one to show, one to score on", where=config.train)
    count = min(len(records) - 1, max(1, math.floor(config.dev * len(records))))
    drawn = set(random.Random(config.seed).sample(range(len(records)), count))
    return (
        [record for i, record in enumerate(records) if i not in drawn],
        [record for i, record in enumerate(records) if i in drawn],
    )


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call has left here, None if it did not finish.

    Raises:
        RescoldoError: it was made otherwise.
    """
    try:
        record = json.loads((folder / RECORD).read_bytes())
        theirs = record["identity"]
        whole = record["program_sha256"] == sha256(folder / PROGRAM)
        different = [name for name in identity if theirs.get(name) != identity[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if different:
        what = "; ".join(f"{name}: {theirs.get(name)!r} there, {identity[name]!r} now" for name in different[:5])
        raise RescoldoError(
            f"holds a program that was made otherwise ({what})",
            where=str(folder),
            fix="choose another --output, or --restart to replace it",
        )
    return dict(record) if whole else None


def _examples(dspy: Any, role: Role, records: Sequence[dict[str, Any]]) -> list[Any]:
    return [
        dspy.Example({role.input: role.question(r), role.spec.answer: role.target(r)}).with_inputs(role.input)
        for r in records
    ]


def _compile(
    dspy: Any,
    config: OptimizeConfig,
    module: Any,
    shown: list[Any],
    dev: list[Any],
    watch: Watch,
    *,
    threads: int,
    writer: Any,
    gone: Callable[[], bool],
) -> Any:
    """Run the optimizer; returns the new module.

    Args:
        writer: the dspy.LM that writes instructions.
        gone: whether no more answers can be had: there is no use in going on.
    """
    many = 1 << 30  # a model's bad answers are what is being scored, no reason to stop
    if config.method == "labeled":
        random.seed(config.seed)
        return dspy.LabeledFewShot(k=config.shots).compile(module, trainset=shown, sample=True)
    if config.method == "bootstrap":
        return dspy.BootstrapFewShot(
            metric=watch.metric, metric_threshold=config.threshold, max_bootstrapped_demos=config.shots,
            max_labeled_demos=config.shots, max_errors=many,
        ).compile(module, trainset=shown)  # fmt: skip
    if config.method == "gepa":
        return _gepa(dspy, config, module, shown, dev, watch, threads=threads, writer=writer, gone=gone)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise missing("dspy", "MIPROv2 needs the package optuna", where="--method") from None
    candidates = max(2, min(8, config.trials))
    return dspy.MIPROv2(
        metric=watch.metric, metric_threshold=config.threshold, auto=None, num_candidates=candidates,
        max_bootstrapped_demos=config.shots, max_labeled_demos=config.shots, num_threads=threads, max_errors=many,
        seed=config.seed, prompt_model=writer,
    ).compile(
        module, trainset=shown, valset=dev, num_trials=config.trials, minibatch=False, seed=config.seed
    )  # fmt: skip


def _gepa(
    dspy: Any,
    config: OptimizeConfig,
    module: Any,
    shown: list[Any],
    dev: list[Any],
    watch: Watch,
    *,
    threads: int,
    writer: Any,
    gone: Callable[[], bool],
) -> Any:
    """GEPA (arXiv 2507.19457): a model reads a few answers with what the metric says of them in words, and writes a
    better instruction; those that are best on some example of `dev` are developed further. See _compile.

    Its own checkpoints are pickles; it is resumed as the others are, from the answers that are kept.
    """
    from dspy.teleprompt.gepa import InstructionProposer

    # a try scores its few answers before and after, and, where they are better, all of dev
    budget = config.budget or len(dev) + config.trials * (2 * REFLECTED + len(dev))
    with without_bars():
        return dspy.GEPA(
            metric=watch.feedback, max_metric_calls=budget, reflection_minibatch_size=min(REFLECTED, len(shown)),
            reflection_lm=writer, instruction_proposer=InstructionProposer(adapter=make_adapter()),
            add_format_failure_as_feedback=True, num_threads=threads, seed=config.seed,
            gepa_kwargs={"stop_callbacks": [lambda state: gone()]},
        ).compile(module, trainset=shown, valset=dev)  # fmt: skip


def _write_program(module: Any, path: Path) -> None:
    """State only: instructions, fields and examples; no model, no traces.

    Raises:
        RescoldoError: it cannot be written.
    """
    for step in module.predictors():
        step.lm, step.traces, step.train = None, [], []

    def write(temporary: Path) -> None:
        named = temporary.with_suffix(".json")  # DSPy chooses the format by the name
        try:
            module.save(named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)

    try:
        write_atomic(path, write)
    except OSError as error:
        raise RescoldoError(
            f"cannot be written: {error.strerror or error}", where=str(path), exit_code=EXIT_FAILURE
        ) from None
