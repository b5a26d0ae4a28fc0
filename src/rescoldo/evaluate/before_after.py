"""A run's base model and its fine-tuned model on the same dataset: what the fine-tuning brought."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescoldo.data import read_records
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluate.comparison import build_comparison
from rescoldo.evaluate.evaluation import (
    Console,
    checked_output,
    describe,
    evaluate,
    metadata,
    partial_cache,
    role_for,
    training_answers,
    write_document,
)

if TYPE_CHECKING:
    from rescoldo.evaluate.predict import Loaded


def compare_run(
    run: str | Path | Loaded,
    dataset: Path | str,
    *,
    role: str | None = None,
    output: Path | str | None = None,
    train: Path | str | None = None,
    train_limit: int = 0,
    sampling: Sampling | None = None,
    limit: int | None = None,
    quantization: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate the base model ("base") and the run ("finetuned") on a dataset and compare them.

    Both are scored with one model in memory. Interrupted, the next call goes on where this one was (with `output`).

    Args:
        run: a run's directory, or one that load_for_inference has loaded.
        output: JSON to write, with a Markdown report beside it.
        train: training set, for what is copied from it; by default the run's own.
        train_limit: score the fine-tuned model on so many training examples too (0: none); the mean stands in the
            metadata as train_score, and in the decision's reasons.

    Returns:
        The comparison document (contract, section 8).

    Raises:
        RescoldoError: run, dataset or output are not as they must be.
    """
    from rescoldo.evaluate.predict import EnginePredictor, Loaded, load_for_inference

    the_role, started = role_for(run if isinstance(run, Loaded) else str(run), role), time.time()
    sampling = sampling or the_role.sampling
    records = read_records(dataset, the_role, answers=the_role.needs_answers)[:limit]
    target = checked_output(Path(output), Path(dataset)) if output is not None else None
    if isinstance(run, str | Path):
        if console:
            console.say(f"Loading {run} …")
        loaded = load_for_inference(str(run), quantization, role=the_role, records=records)
    else:
        loaded = run
    if loaded.run is None:
        raise RescoldoError("is no run directory", where=loaded.spec, fix="pass the --output of a finished training")
    training, training_file = training_answers(train, loaded.info, the_role)
    models: dict[str, Any] = {}
    train_score = None
    with partial_cache(target) as cache:
        for adapter in (False, True):
            predictor = EnginePredictor(loaded, the_role, adapter=adapter)
            part = evaluate(predictor, records, the_role, sampling, cache=cache, training=training, console=console)
            models[predictor.name] = {**describe(loaded, adapter), **part}
        if train_limit > 0 and training_file is not None:
            predictor = EnginePredictor(loaded, the_role, name="finetuned, training set")
            learned = read_records(training_file, the_role)[:train_limit]
            part = evaluate(predictor, learned, the_role, sampling, cache=cache, console=console)
            train_score = part["scores"]["mean"]
        document = build_comparison(
            models,
            baseline="base",
            finetuned="finetuned",
            train_score=train_score,
            metadata={
                **metadata(the_role.name, Path(dataset), len(records), limit, training_file, started),
                "train_score": train_score,
                "train_score_examples": min(train_limit, len(learned)) if train_score is not None else 0,
            },
        )
        if target:
            write_document(document, target)
    return document
