"""All checks: for `rescoldo doctor`, and for a run that is about to start."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from rescoldo.base.hub_id import is_hub_id
from rescoldo.data.tokenize import fix_date
from rescoldo.doctor import content, machine, room
from rescoldo.doctor.check import Check, ok, refused, warning
from rescoldo.doctor.subject import Subject, subject_of
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.invocation import program
from rescoldo.role import get_role
from rescoldo.training.config import RunConfig
from rescoldo.training.identity import identity
from rescoldo.training.objectives import OBJECTIVES, apply_defaults, check_settings
from rescoldo.training.origin import Origin, read_origin
from rescoldo.training.parts import Parts
from rescoldo.training.prepare import Prepared, date_of_run, read_train, read_val, settle, with_preset
from rescoldo.training.preset import check_against_base
from rescoldo.training.progress import Reporter

CHECKS: tuple[Callable[[Subject], Iterator[Check]], ...] = (
    content.base_model,
    content.datasets,
    room.output,
    room.disk,
    room.memory,
    machine.cpu,
    machine.threads,
    machine.load,
    machine.power,
    machine.sleep,
    machine.libraries,
)


def examine(config: RunConfig, parts: Parts) -> Iterator[Check]:
    """Run all checks for a run of `config`, one after the other. Starts no run and writes only caches."""
    origin: Origin | None = None
    try:
        config, origin, notes = read_origin(config)
        yield from (ok("adapter", note) for note in notes)
    except RescoldoError as error:
        yield refused("adapter", error)
    subject = Subject(config)
    absent = not_fetched(config.base_model)
    if absent is not None:
        yield absent
    else:
        try:
            base = parts.open_base(config.base_model)
            config = origin.settings(config, base) if origin else config
            check_settings(config)
            config, _ = apply_defaults(config)
            config, _ = with_preset(config, base, parts)
            config = check_against_base(config, base, frozenset(config.model_fields_set))
            config, _ = settle(config, base)
            subject = replace(subject, config=config, base=base)
        except RescoldoError as error:
            yield refused("base model", error)
    if subject.base is not None:
        try:
            tokenizer, day = subject.base.tokenizer(), date_of_run(config.output)
            dated = fix_date(tokenizer, day)
            subject = replace(subject, tokenizer=tokenizer, day=day if dated else None)
        except RescoldoError as error:
            yield refused("tokenizer", error)
    if subject.tokenizer is not None:
        subject = yield from _with_data(subject, parts, origin.digest if origin else "")
    for check in CHECKS:
        yield from check(subject)


def _with_data(subject: Subject, parts: Parts, parent: str) -> Generator[Check, None, Subject]:
    """Yields the problems of the datasets; returns the subject with those that could be read."""
    config = subject.config
    try:
        role = get_role(config.role).ready()
        subject = replace(subject, role=role)
    except RescoldoError as error:
        yield refused("role", error)
        return subject
    row = OBJECTIVES[config.objective]
    try:
        files = [config.train, *([config.replayed[0]] if config.replayed else [])]
        records = [parts.check_dataset(path, role, **row.reading) for path in files]
        train = read_train(config, parts, role, subject.tokenizer, *records)
        subject = replace(subject, train=train)
    except RescoldoError as error:
        yield refused("training data", error)
    try:
        val = read_val(config, parts, role, subject.tokenizer, parts.check_dataset(config.val, role, **row.reading))
        subject = replace(subject, val=val)
    except RescoldoError as error:
        yield refused("validation data", error)
    if subject.base is not None and subject.train is not None and subject.val is not None:
        known = identity(config, role, subject.base.fingerprint(), subject.train, subject.val, subject.day, parent)
        subject = replace(subject, identity=known)
    return subject


def not_fetched(spec: str) -> Check | None:
    """A warning if `spec` is a Hub model that is not on this machine, since checks do not download models."""
    if not is_hub_id(spec):
        return None
    from huggingface_hub import try_to_load_from_cache

    from rescoldo.base.hub import hub_cache

    if isinstance(try_to_load_from_cache(spec, "config.json", cache_dir=hub_cache()), str):
        return None
    return warning(
        "base model",
        f"{spec} is not on this machine; `{program()} train` downloads it from the Hub first",
        f"hf download {spec}; without a network: on another machine hf download {spec} --local-dir DIRECTORY, copy "
        "DIRECTORY here and name it as --base-model",
    )


def preflight(prepared: Prepared, reporter: Reporter, force: bool) -> None:
    """Run the checks for a run that is about to start: warnings are printed, failures stop it.

    Raises:
        RescoldoError: there are failures, and not `force`.
    """
    subject = subject_of(prepared)
    failures = []
    looks = [look for look in CHECKS if look is not room.output]  # the run checks its output itself
    for check in (check for look in looks for check in look(subject)):
        if check.level == "failure":
            failures.append(check)
        elif check.level == "warning" and not _said_already(check):
            reporter.warn(f"{check.name}: {check.what}\n    → {check.remedy}")
    if not failures:
        return
    if force:
        for check in failures:
            reporter.warn(f"{check.name}: {check.what}\n    → {check.remedy} (--force: started anyway)")
        return
    first, *others = failures
    more = "".join(f"\n  {check.name}: {check.what}\n    → {check.remedy}" for check in others)
    raise RescoldoError(
        f"{first.what}{more}",
        where=first.name,
        fix=f"{first.remedy}; or --force to start anyway",
        exit_code=EXIT_FAILURE,
    )


def _said_already(check: Check) -> bool:
    """Whether reading the data has reported this already (overruns)."""
    return "overruns" in check.figures
