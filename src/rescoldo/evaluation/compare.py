"""Models on the same dataset, side by side: what `rescoldo compare` and the demo do."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescoldo.data import read_records
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluation.comparison import build_comparison
from rescoldo.evaluation.content import measure_content
from rescoldo.evaluation.document import checked_output, metadata, partial_cache, write_document
from rescoldo.evaluation.evaluation import Console, answer_together, evaluate, role_for, scale_of, training_set
from rescoldo.evaluation.judge import TOKENS, Judge, judge_document, pairs_to_judge
from rescoldo.evaluation.verdict import constrained_name, with_verdict
from rescoldo.models.cache import PredictionCache
from rescoldo.models.loaded import is_run, run_info
from rescoldo.models.predictor import ChatPredictor, Predictor
from rescoldo.preference.people import take_votes_in
from rescoldo.preference.votes import VoteFile, votes_path
from rescoldo.role import Role
from rescoldo.role.grammar import role_grammar

if TYPE_CHECKING:
    from rescoldo.evaluation.open import Opener
    from rescoldo.models.loaded import Loaded
    from rescoldo.models.server import ServerOptions


@dataclass(frozen=True)
class Parts:
    """Which model plays which part, by name: M1, M2 and M3. "" where there is none.

    Attributes:
        together: a run that is asked with the prompt that it was trained with, not with the comparison's role: M2's
            instruction in the weights (see evaluation.together).
    """

    baseline: str
    optimized: str = ""
    finetuned: str = ""
    together: str = ""


def compare(
    models: Mapping[str, str],
    dataset: Path | str,
    parts: Parts,
    *,
    role: str | None = None,
    output: Path | str | None = None,
    sampling: Sampling | None = None,
    repeats: int = 1,
    train_set: Path | str | None = None,
    train_limit: int | None = None,
    limit: int | None = None,
    quantization: str = "auto",
    server: ServerOptions | None = None,
    allow_pickle: bool = False,
    constrained: bool = False,
    reuse: Sequence[Path] = (),
    perplexity: bool = False,
    lang: str = "en",
    judges: Sequence[str] = (),
    judge_tokens: int = TOKENS,
    console: Console | None = None,
) -> dict[str, Any]:
    """Answer a dataset with each model, score the answers and compare.

    Interrupted, the next call resumes where this one was; repeated, it asks nothing again (both with `output`).

    Args:
        models: name in the document → spec (see rescoldo.evaluation.open).
        role: name or path; where not given the fine-tuned run's own, else ba.
        output: JSON to write; a Markdown report and an HTML page go beside it.
        repeats: answers to each input, with seeds that follow each other.
        train_set: a training set: the fine-tuned model is scored on it, too (its first `train_limit` records), and
            all answers are searched for what is copied from it. By default only the latter, with the run's own.
        constrained: the baseline once more, with its answers held to the role's schema: what the form is worth without
            any training. Left out, with a line that says so, where role or baseline cannot be constrained.
        reuse: documents of earlier evaluations and comparisons, whose answers need not be asked for.
        perplexity: measure all answers' perplexity under the first model of our engine, without its adapter.
        lang: of the reports, "en" or "es".
        judges: specs of models that are examined and then judge the answers (see rescoldo.evaluation.judge).
        judge_tokens: that a judge may write.

    Returns:
        The comparison document.

    Raises:
        RescoldoError: a model, the dataset or the output is not as it must be; a server is gone.
    """
    from rescoldo.evaluation.open import Opener

    spec = models.get(parts.finetuned, "")
    the_role = role_for(spec or models[parts.baseline], role)
    records = read_records(dataset, the_role, answers=the_role.needs_answers)[:limit]
    opener = Opener(
        the_role,
        specs=list(models.values()),
        records=records,
        quantization=quantization,
        server=server,
        default_lm=models[parts.baseline],
        allow_pickle=allow_pickle,
    )
    target = checked_output(Path(output), Path(dataset)) if output is not None else None
    if target and (votes := votes_path(target)).exists():
        VoteFile(votes)  # what cannot be read is named now and not after hours
    asked_for = set(models)
    if constrained:
        models = _with_constrained(models, parts.baseline, the_role, console)
    # all are opened before the first one works for hours
    predictors = [opener.predictor(spec, name, own_prompt=name == parts.together) for name, spec in models.items()]
    panel = [ChatPredictor(opener.chat(spec), the_role, spec) for spec in dict.fromkeys(judges)]
    if panel and sum(the_role.answer_of(record) is not None for record in records) < 2:
        raise RescoldoError(
            "a judge is examined with the data set's own answers, and fewer than two records have one",
            where="--judge", fix="compare on a --dataset with answers, or leave --judge out",
        )  # fmt: skip
    info = run_info(Path(spec)) if is_run(spec) else {}
    known = [*reuse, *([target] if target and target.exists() else [])]
    return _compare(
        predictors, records, parts, dataset=Path(dataset), role=the_role, target=target, reuse=known,
        sampling=sampling or the_role.sampling, repeats=repeats, info=info, train=train_set,
        train_limit=(train_limit or None) if train_set is not None else 0, limit=limit, console=console, opener=opener,
        perplexity=perplexity, lang=lang,
        panel=panel, judge_tokens=judge_tokens,
        optional=models.keys() - asked_for,
    )  # fmt: skip


def _with_constrained(
    models: Mapping[str, str], baseline: str, role: Role, console: Console | None
) -> Mapping[str, str]:
    """The models, and behind the baseline the same with constrained answers, where that can be."""
    from rescoldo.evaluation.open import CONSTRAINED
    from rescoldo.programs.program import find_program

    name, reason = constrained_name(baseline), ""
    try:
        role_grammar(role)
        if find_program(models[baseline]) is not None:
            reason = "it is a program"
        elif name in models or models[baseline].startswith(CONSTRAINED):
            reason = "it is there already"
    except RescoldoError as error:
        reason = error.what
    if reason:
        _say_unconstrained(baseline, reason, console)
        return models
    added: dict[str, str] = {}
    for known, spec in models.items():
        added |= {known: spec, name: CONSTRAINED + spec} if known == baseline else {known: spec}
    return added


def _say_unconstrained(baseline: str, reason: str, console: Console | None) -> None:
    if console:
        console.say(f"{baseline} is not compared with constrained answers: {reason}")


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
    constrained: bool = False,
    perplexity: bool = False,
    lang: str = "en",
    console: Console | None = None,
) -> dict[str, Any]:
    """A run's base model ("base") against the run ("finetuned"), with one model in memory. See compare.

    Args:
        run: a run's directory, or one that load_for_inference has loaded.
        train: training set, for what is copied from it; by default the run's own.
        train_limit: score the fine-tuned model on so many training examples too (0: none).
        constrained: the base model once more, as "base_constrained", where the role can be constrained.
        perplexity, lang: see compare.

    Raises:
        RescoldoError: run, dataset or output are not as they must be.
    """
    from rescoldo.models.engine_chat import EnginePredictor
    from rescoldo.models.loaded import Loaded, load_for_inference

    the_role = role_for(run if isinstance(run, Loaded) else str(run), role)
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
    base = EnginePredictor(loaded, the_role, adapter=False)
    predictors, name = [base, EnginePredictor(loaded, the_role)], constrained_name(base.name)
    if constrained:
        try:
            grammar = role_grammar(the_role)
            predictors.insert(1, EnginePredictor(loaded, the_role, adapter=False, name=name, grammar=grammar))
        except RescoldoError as error:
            _say_unconstrained(base.name, error.what, console)
    return _compare(
        predictors, records, Parts("base", finetuned="finetuned"), dataset=Path(dataset), role=the_role, target=target,
        reuse=[target] if target and target.exists() else [], sampling=sampling or the_role.sampling, repeats=1,
        info=loaded.info, train=train, train_limit=train_limit, limit=limit, console=console,
        perplexity=perplexity, lang=lang, optional=(name,),
    )  # fmt: skip


def _of_one(predictors: Sequence[Predictor]) -> list[Predictor]:
    """The first of these predictors, and the others that have its weights in memory."""
    loaded = getattr(getattr(predictors[0], "chat", None), "loaded", None)
    if loaded is None:
        return []
    return [one for one in predictors if getattr(getattr(one, "chat", None), "loaded", None) is loaded]


def _compare(
    predictors: Sequence[Predictor],
    records: Sequence[dict[str, Any]],
    parts: Parts,
    *,
    dataset: Path,
    role: Role,
    target: Path | None,
    reuse: Sequence[Path],
    sampling: Sampling,
    repeats: int,
    info: dict[str, Any],
    train: Path | str | None,
    train_limit: int | None,
    limit: int | None,
    console: Console | None,
    opener: Opener | None = None,
    perplexity: bool = False,
    lang: str = "en",
    panel: Sequence[ChatPredictor] = (),
    judge_tokens: int = TOKENS,
    optional: Collection[str] = (),
) -> dict[str, Any]:
    """Evaluate and compare. `info`: the fine-tuned run's; `train_limit`: training examples to score on (None: all);
    `optional`: models that may fail, as on a server that does not constrain answers."""
    started = time.time()
    scale = scale_of(predictors)
    if perplexity and scale is None:
        raise RescoldoError(
            "no model here measures perplexity: a server does not tell it",
            where="--perplexity",
            fix="add a model of our engine, or leave it out",
        )
    measuring = [ChatPredictor(scale, role, "")] if perplexity and scale else []  # its weights are kept to the end
    training = training_set(train, info, role)
    learned = training.records[:train_limit]
    models: dict[str, Any] = {}
    on_training: dict[str, Any] | None = None
    ahead: set[str] = set()
    with partial_cache(target, reuse) as kept:
        cache = kept or PredictionCache(None)
        for place, predictor in enumerate(predictors):
            try:
                ahead |= answer_together(
                    _of_one(predictors[place:]), records, sampling, repeats=repeats, cache=cache, console=console
                )
                models[predictor.name] = evaluate(
                    predictor, records, role, sampling,
                    repeats=repeats, cache=cache, training=training.answers, console=console, ahead=ahead,
                )  # fmt: skip
            except RescoldoError as error:
                if predictor.name not in optional:
                    raise
                if console:
                    console.say(f"{predictor.name} is left out: {error.what}")
            if learned and predictor.name == parts.finetuned:
                if console:
                    console.say(f"{predictor.name}: now on {len(learned)} training examples")
                on_training = evaluate(predictor, learned, role, sampling, cache=cache, console=console)
            if opener:
                later = predictors[place + 1 :]
                opener.release(predictor, [*later, *panel, *measuring])
        models, reference = measure_content(
            models,
            role,
            records,
            training=training.answers,
            training_records=training.records,
            scale=scale,
            perplexity=perplexity,
        )
        if opener and measuring:
            opener.release(measuring[0], panel)
        train_score = on_training["scores"]["mean"] if on_training else None
        facts = metadata(role, dataset, len(records), limit, training.path, started, output=target, lang=lang)
        document = build_comparison(
            models,
            baseline=parts.baseline,
            optimized=parts.optimized or None,
            finetuned=parts.finetuned or None,
            train_score=train_score,
            metadata={
                **facts,
                "train_score": train_score,
                "train_score_examples": len(learned),
                **({"together": parts.together} if parts.together else {}),
            },
            reference=reference,
        )
        if on_training:
            document["training"] = {"model": parts.finetuned, "dataset": training.path, **on_training}
        if panel:
            document["judges"] = []
            selves = {predictor.fingerprint(): predictor.name for predictor in predictors if predictor.name in models}
            pairs = pairs_to_judge(list(models), parts.finetuned, parts.baseline)
            for place, member in enumerate(panel):
                judge = Judge(member.name, member.chat, role, tokens=judge_tokens, cache=cache, console=console)
                own = selves.get(member.fingerprint(), "")
                document["judges"].append(judge_document(judge, document, records, pairs, own=own, seed=sampling.seed))
                if opener:
                    opener.release(member, panel[place + 1 :])
        if target:
            take_votes_in(document, target)
        document = with_verdict(document)
        if target:
            write_document(document, target)
    return document
