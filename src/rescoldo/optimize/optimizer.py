"""Optimize a prompt with DSPy's optimizers: examples to show (not GEPA) and instructions (MIPROv2, GEPA), selected by
their score."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rescoldo.allowed import check_number
from rescoldo.data import read_records
from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.evaluation.evaluation import Console, evaluate
from rescoldo.evaluation.open import CONSTRAINED, Opener
from rescoldo.files import sha256, write_atomic, write_json
from rescoldo.models.cache import PredictionCache
from rescoldo.models.server import ServerOptions
from rescoldo.optimize.config import OptimizeConfig
from rescoldo.optimize.methods import METHODS, SETTINGS, Task
from rescoldo.optimize.watch import Watch, dspy_log
from rescoldo.programs import import_dspy
from rescoldo.programs.lm import MAX_BATCH, Desk, make_adapter, make_lm
from rescoldo.programs.predictor import ProgramPredictor
from rescoldo.programs.program import PROGRAM, RECORD, Program, new_program, read_program
from rescoldo.role import Role, get_role
from rescoldo.run.lock import RunLock
from rescoldo.version import __version__

WRITING_TEMPERATURE = 1.0  # DSPy's default: proposed instructions should differ


def optimize(
    config: OptimizeConfig,
    output: Path | str,
    *,
    server: ServerOptions | None = None,
    restart: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Optimize a role's prompt; write the program and its record to `output`.

    The model's answers are cached on disk, and for the same seed DSPy asks the same questions in the same order, so an
    interrupted call resumes from the cache. A finished one returns the existing result.

    Returns:
        The content of optimize.json: model, method, scores {"before", "after"} on the dev part, demos, config, …

    Raises:
        RescoldoError: dspy is missing, config or files are invalid, the model cannot answer, or `output` holds a
            program made with other settings (restart replaces it).
    """
    _check(config)
    config = config.filled()
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
        # a model constrained to the role's form cannot write instructions, so the unconstrained one does
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
                made = METHODS[config.method].compile(
                    Task(
                        dspy=dspy,
                        config=config,
                        module=program.module,
                        shown=_examples(dspy, role, shown),
                        dev=_examples(dspy, role, dev),
                        watch=watch,
                        threads=MAX_BATCH if chat.batches else workers,
                        writer=make_lm(writing, replace(sampling, temperature=WRITING_TEMPERATURE)),
                        failed=lambda: bool(desk.failure or writing.failure),
                    )
                )
            except Exception as error:  # DSPy raises many types
                if isinstance(error, RescoldoError):
                    raise
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise desk.failure or writing.failure or RescoldoError(
                    f"the optimizer failed: {why}", where=f"--method {config.method}",
                    fix="the same command resumes; --reflection-model names another model to write the instructions",
                    exit_code=EXIT_FAILURE,
                ) from error  # fmt: skip
            if failure := desk.failure or writing.failure:  # DSPy counts it as a bad answer
                raise failure
            asked = {"answers": desk.asked + writing.asked, "answers_kept_from_before": desk.known + writing.known}
        _write_program(made, folder / PROGRAM)
        after = score(read_program(folder / PROGRAM, role), "after")
        record = {
            "rescoldo": __version__,
            "model": config.model,
            "model_described": chat.describe(),
            "reflection_model_described": writer.describe() if METHODS[config.method].writes else None,
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
    method = METHODS[config.method]
    for name, what in SETTINGS.items():
        if getattr(config, name) is not None and name not in method.uses:
            raise RescoldoError(
                f"{config.method} {what}",
                where=f"--{name.replace('_', '-')}",
                fix=f"--method {' or '.join(key for key, one in METHODS.items() if name in one.uses)}, or leave it out",
            )
    if config.budget is not None and config.trials is not None:
        raise RescoldoError("--budget and --trials exclude each other", where="--budget", fix="leave one of them out")
    if (config.reflection_model or "").startswith(CONSTRAINED):
        raise RescoldoError(
            "instructions have no schema to constrain them to", where=f"--reflection-model {config.reflection_model}",
            fix="leave out constrained:",
        )  # fmt: skip
    for flag, value, least, most in (
        ("shots", config.shots, 1, 64), ("trials", config.trials, 1, 1000), ("dev", config.dev, 0.01, 0.9),
        ("threshold", config.threshold, 0, 1), ("limit", config.limit, 2, 1 << 31),
        ("budget", config.budget, 1, 1_000_000),
    ):  # fmt: skip
        check_number(f"--{flag}", value, whole=isinstance(least, int) and flag != "threshold", ge=least, le=most)


def _split(records: Sequence[dict[str, Any]], config: OptimizeConfig) -> tuple[list[Any], list[Any]]:
    """The examples to show and those to score on, drawn by the seed, in the file's order."""
    if len(records) < 2:
        raise RescoldoError("too few examples: expected at least two, one to show and one to score", where=config.train)
    count = min(len(records) - 1, max(1, math.floor(config.dev * len(records))))
    drawn = set(random.Random(config.seed).sample(range(len(records)), count))
    return (
        [record for i, record in enumerate(records) if i not in drawn],
        [record for i, record in enumerate(records) if i in drawn],
    )


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result of an earlier call in this folder; None if it did not finish.

    Raises:
        RescoldoError: it was made with other settings.
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
            f"holds a program made with other settings ({what})",
            where=str(folder),
            fix="choose another --output, or --restart to replace it",
        )
    return dict(record) if whole else None


def _examples(dspy: Any, role: Role, records: Sequence[dict[str, Any]]) -> list[Any]:
    return [
        dspy.Example({role.input: role.question(r), role.spec.answer: role.target(r)}).with_inputs(role.input)
        for r in records
    ]


def _write_program(module: Any, path: Path) -> None:
    """Write the state only: instructions, fields and examples; no model, no traces.

    Raises:
        RescoldoError: it cannot be written.
    """
    for step in module.predictors():
        step.lm, step.traces, step.train = None, [], []

    def write(temporary: Path) -> None:
        named = temporary.with_suffix(".json")  # DSPy chooses the format by the suffix
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
