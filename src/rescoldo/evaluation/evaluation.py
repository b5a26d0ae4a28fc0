"""Evaluate a model on a dataset: what `rescoldo eval` does, and the Python API for it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rescoldo.allowed import check_number
from rescoldo.base.open import SCHEMES
from rescoldo.data import read_records
from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.evaluation.choices import choices_part, fitting_records, refuse_other_than_labels
from rescoldo.evaluation.content import measure_content
from rescoldo.evaluation.diagnostics import TrainingAnswers
from rescoldo.evaluation.document import checked_output, metadata, partial_cache, write_document
from rescoldo.evaluation.labels import labels_part
from rescoldo.evaluation.sampled import sampled
from rescoldo.evaluation.score import answers_use_input, common, score_row, summarise
from rescoldo.invocation import program
from rescoldo.models.cache import PredictionCache, key
from rescoldo.models.predictor import ChatPredictor, MeasuresLoss, Prediction, Predictor
from rescoldo.names import is_server
from rescoldo.role import Role, role_of_run

if TYPE_CHECKING:
    from rescoldo.models.engine_chat import EngineChat
    from rescoldo.models.loaded import Loaded


class Progress(Protocol):
    """Told what happens while answers are made."""

    def tokens(self, count: int) -> None:
        """So many tokens are written, of all unfinished rows together."""

    def rows(self, done: int) -> None:
        """So many rows are done."""


class Console(Protocol):
    """Where an evaluation says what it does."""

    def say(self, text: str) -> None:
        """One line."""

    def answering(self, name: str, total: int, done: int, most_tokens: int) -> AbstractContextManager[Progress]:
        """A bar over rows of at most so many tokens each."""


def evaluate(
    predictor: Predictor,
    records: Sequence[dict[str, Any]],
    role: Role,
    sampling: Sampling,
    *,
    repeats: int = 1,
    cache: PredictionCache | None = None,
    training: TrainingAnswers | None = None,
    console: Console | None = None,
    ahead: Collection[str] = (),
) -> dict[str, Any]:
    """Answer all records, or take the answers from the cache, and score them.

    Args:
        repeats: how often each record is answered: with the seed, the seed + 1, …
        ahead: keys of answers that this evaluation has made already (answer_together).

    Returns:
        One model's part of the JSON: what the predictor says of itself, scores,
        component_scores, diagnostics, warnings, predictions (the records in their order, then once more for each
        repeat), sampling; with repeats `sampled` (see sampled.sampled); labels, where the dataset's answers are such
        (evaluation.labels).

    Raises:
        RescoldoError: no records, a model that cannot answer, not one answer, or the cache cannot be written.
    """
    if not records:
        raise RescoldoError("there are no records to evaluate on", where="--dataset")
    samplings = _samplings(sampling, repeats)
    keys = _keys(predictor, records, samplings)
    found: dict[int, Prediction] = {}
    if cache:
        found = {i: kept for i, name in enumerate(keys) if (kept := cache.get(name)) is not None}
        before = sum(keys[i] not in ahead for i in found)
        if before and console:
            console.say(f"{predictor.name}: {before} of {len(keys)} answers are there already")
    if len(found) < len(keys):
        bar = (
            console.answering(predictor.name, len(keys), len(found), sampling.max_new_tokens)
            if console
            else nullcontext()
        )
        with bar as progress:
            for repeat, drawn in enumerate(samplings):
                open_ = [i for i in range(repeat * len(records), (repeat + 1) * len(records)) if i not in found]
                if not open_:
                    continue
                told = progress.tokens if progress else None
                asked = [records[i % len(records)] for i in open_]
                for place, prediction in predictor.predict(asked, drawn, told):
                    index = open_[place]
                    found[index] = prediction
                    if cache and not prediction.error:
                        cache.put(keys[index], prediction)
                    if progress:
                        progress.rows(len(found))
    if all(prediction.error for prediction in found.values()):
        raise RescoldoError(
            f"none of {len(found)} answers could be had ({common(found[i].error for i in found)}): nothing to score",
            where=predictor.name,
            fix="fix that and repeat the command",
            exit_code=EXIT_FAILURE,
        )
    rows = []
    use_input = answers_use_input(role, records)
    for i, name in enumerate(keys):
        repeat, example = divmod(i, len(records))
        row = score_row(role, records[example], found[i], training, use_input=use_input)
        rows.append({"example": example, "repeat": repeat, **row, "key": name})
    part = {**predictor.describe(), **summarise(rows), "sampling": {**asdict(sampling), "repeats": repeats}}
    if several := sampled(rows, not role.needs_answers):
        part["sampled"] = several
    if (labels := labels_part(role, records, rows)) is not None:
        part["labels"] = labels
    if role.perplexity and isinstance(predictor, ChatPredictor) and isinstance(predictor.chat, MeasuresLoss):
        part["perplexity"] = predictor.chat.perplexity(role, records)
    return part


def _samplings(sampling: Sampling, repeats: int) -> list[Sampling]:
    """What each repeat is drawn with."""
    return [replace(sampling, seed=sampling.seed + repeat) for repeat in range(repeats)]


def _keys(predictor: Predictor, records: Sequence[dict[str, Any]], samplings: Sequence[Sampling]) -> list[str]:
    """Under which the answers are kept: the records in their order, once for each sampling."""
    fingerprint = predictor.fingerprint()
    prompts = [predictor.prompt(record) for record in records]
    return [key(fingerprint, prompt, drawn) for drawn in samplings for prompt in prompts]


def answer_together(
    predictors: Sequence[Predictor],
    records: Sequence[dict[str, Any]],
    sampling: Sampling,
    *,
    repeats: int,
    cache: PredictionCache,
    console: Console | None = None,
) -> set[str]:
    """Make the answers of those predictors that have their weights in common in one batch, which reads those once for
    all of them, and put them into the cache, where `evaluate` finds them: the answers that each would give alone.

    Returns:
        Their keys.

    Raises:
        RescoldoError: the cache cannot be written.
    """
    from rescoldo.models.engine_chat import EngineChat, complete_together, prepare_together

    samplings = _samplings(sampling, repeats)
    made: set[str] = set()
    together = [one for one in predictors if isinstance(one, ChatPredictor) and _answers_here(one.chat)]
    keys = [_keys(one, records, samplings) for one in together]
    for repeat, drawn in enumerate(samplings):
        first = repeat * len(records)
        missing = [[i for i in range(len(records)) if cache.get(names[first + i]) is None] for names in keys]
        busy = [place for place, indices in enumerate(missing) if indices]
        chats = [chat for place in busy if isinstance(chat := together[place].chat, EngineChat)]
        asked = [[together[place].role.messages(records[i]) for i in missing[place]] for place in busy]
        prepared = prepare_together(chats, asked, drawn) if len(busy) > 1 else None
        if prepared is None:
            continue
        name, total = ", ".join(together[place].name for place in busy), len(busy) * len(records)
        done = total - sum(map(len, asked))
        bar = console.answering(name, total, done, sampling.max_new_tokens) if console else nullcontext()
        with bar as progress:
            told = progress.tokens if progress else None
            for place, index, prediction in complete_together(chats, prepared, drawn, told):
                name = keys[busy[place]][first + missing[busy[place]][index]]
                if not prediction.error:
                    cache.put(name, prediction)
                    made.add(name)
                done += 1
                if progress:
                    progress.rows(done)
    return made


def _answers_here(chat: object) -> bool:
    """Whether a chat model is one of our engine whose grammar, if any, can be used."""
    from rescoldo.models.engine_chat import EngineChat

    if not isinstance(chat, EngineChat):
        return False
    try:
        if chat.constrain is not None:
            chat.constrain()
    except RescoldoError:
        return False  # `evaluate` says so
    return True


def evaluate_model(
    model: str | Loaded,
    dataset: Path | str,
    *,
    role: str | None = None,
    output: Path | str | None = None,
    train: Path | str | None = None,
    sampling: Sampling | None = None,
    samples: int = 1,
    limit: int | None = None,
    base: bool = False,
    constrained: bool = False,
    quantization: str = "auto",
    name: str = "",
    perplexity: bool = False,
    choices: bool = False,
    lang: str = "en",
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a run directory or a base model.

    Args:
        model: a run directory, a base model as open_base takes it, or a model that load_for_inference has loaded.
        dataset: JSON Lines; the answers are needed only where the role's metric compares with them.
        role: name or path; where not given the run's own, for a base model ba.
        output: JSON file to write, with a Markdown report beside it (.md). Answers are kept in OUTPUT.partial.jsonl
            while they are made, so that a second call resumes where a first was stopped.
        train: training set, to find what is copied from it; by default the run's own, where it is still there.
        sampling: the role's, where not given.
        samples: answers to each record, with seeds that follow each other.
        limit: only the first so many records.
        base: for a run directory: its base model alone.
        constrained: hold answers to the role's schema (constrained decoding).
        name: of the model in the document; "finetuned" or "base" where not given.
        perplexity: measure the answers' perplexity under the base model.
        choices: measure the probability of each of the dataset's labels (evaluation.choices).
        lang: of the reports, "en" or "es".

    Returns:
        {"metadata", "reference", "models": {name: {"scores", "component_scores", "content", "predictions", …}}}

    Raises:
        RescoldoError: dataset, model or output are not as they must be.
    """
    from rescoldo.base.chat_templates import plain_note
    from rescoldo.models.engine_chat import EngineChat, EnginePredictor
    from rescoldo.models.loaded import load_for_inference
    from rescoldo.role.grammar import role_grammar

    the_role = role_for(model, role)
    sampling = sampling or the_role.sampling
    check_samples(samples, sampling.temperature)
    if limit is not None and limit < 1:
        raise RescoldoError(
            f"{limit} leaves nothing to evaluate", where="--limit", fix="give 1 or more, or leave it out"
        )
    records = read_records(dataset, the_role, answers=the_role.needs_answers or choices)[:limit]
    if choices:
        refuse_other_than_labels(the_role, records)
    target = checked_output(Path(output), Path(dataset)) if output is not None else None
    started = time.time()
    if isinstance(model, str):
        _check_engine(model, dataset)
        if console:
            console.say(f"Loading {model} …")
        loaded = load_for_inference(model, quantization, role=the_role, records=records)
    else:
        loaded = model
    if console and (note := plain_note(loaded.tokenizer)):
        console.say(note)
    if base and loaded.run is None:
        raise RescoldoError(f"{loaded.spec} is a base model already", where="--base", fix="leave --base out")
    training = training_set(train, loaded.info, the_role)
    grammar = role_grammar(the_role) if constrained else None
    predictor = EnginePredictor(loaded, the_role, adapter=not base, name=name, grammar=grammar)
    with partial_cache(target) as cache:
        part = evaluate(
            predictor,
            records,
            the_role,
            sampling,
            repeats=samples,
            cache=cache,
            training=training.answers,
            console=console,
        )
        if choices:
            others = fitting_records(loaded.info, the_role, Path(dataset), records)
            part["choices"] = choices_part(EngineChat(loaded, adapter=not base), the_role, records, others)
        models, reference = measure_content(
            {predictor.name: part},
            the_role,
            records,
            training=training.answers,
            training_records=training.records,
            scale=scale_of([predictor]),
            perplexity=perplexity,
        )
        facts = metadata(the_role, Path(dataset), len(records), limit, training.path, started, output=target, lang=lang)
        document = {"metadata": facts, "reference": reference, "models": models}
        if target:
            write_document(document, target)
    return document


def check_samples(samples: int, temperature: float) -> None:
    """Raises RescoldoError where so many answers to each record make no sense."""
    check_number("--samples", samples, whole=True, ge=1, le=10_000)
    if samples > 1 and temperature == 0:
        raise RescoldoError(
            "greedy answers are the same every time",
            where="--samples",
            fix="leave it out, or sample: --temperature 0.7",
        )


def _check_engine(model: str, dataset: Path | str) -> None:
    """Say where servers and programs belong, instead of that there is no such base model."""
    from rescoldo.programs.program import PROGRAM, find_program

    path, _ = find_program(model) or (None, "")
    asked = is_server(model) and model.partition(":")[0] not in SCHEMES  # ollama:NAME is a file in its store here
    if asked or (path and (path.is_file() or (path / PROGRAM).is_file())):
        what = "a server" if asked else "a DSPy program"
        others = ["--baseline", "sample:smollm2", "--model", f"other={model}", "--dataset", str(dataset)]
        raise RescoldoError(
            f"this is {what}; eval asks our own engine alone",
            where=model,
            fix=f"{program()} compare {shlex.join(others)}",
        )


def scale_of(predictors: Sequence[Predictor]) -> EngineChat | None:
    """What all answers are measured by: the first model of our engine, without its adapter; None if all are servers."""
    from rescoldo.models.engine_chat import EngineChat

    for predictor in predictors:
        chat = getattr(predictor, "chat", None)
        if isinstance(chat, EngineChat):
            return EngineChat(chat.loaded, adapter=False)
    return None


def role_for(model: str | Loaded, given: str | None) -> Role:
    """The role to evaluate with, ready to score: the one named, else the run's own, for a base model ba.

    Raises:
        RescoldoError: it cannot be found, read, or trusted.
    """
    from rescoldo.models.loaded import is_run, run_info

    if isinstance(model, str):
        run = Path(model) if is_run(model) else None
        return role_of_run(run, run_info(run) if run else {}, given).ready()
    return role_of_run(model.run, model.info, given).ready()


@dataclass(frozen=True)
class TrainingSet:
    """A training set as evaluations use it, read once.

    Attributes:
        path: of its file; None where there is none.
        records: all of them.
        answers: what answers are compared with to find what is copied; None without records.
    """

    path: str | None = None
    records: Sequence[dict[str, Any]] = ()
    answers: TrainingAnswers | None = None


def training_set(train: Path | str | None, info: dict[str, Any], role: Role) -> TrainingSet:
    """The training set named, else the run's own where it is still there and readable.

    Raises:
        RescoldoError: the set that was named cannot be read.
    """
    path = Path(train) if train is not None else Path(str(info.get("train_dataset") or ""))
    if train is None and not path.is_file():
        return TrainingSet()
    try:
        records = read_records(path, role)
        return TrainingSet(str(path), records, TrainingAnswers(map(role.target, records), role.form))
    except RescoldoError:
        if train is not None:
            raise
        return TrainingSet()  # the run's own file has changed since: no diagnostics then
