"""Checks of a role: its file, its samples, its prompt, and its metric."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.role.fault import Fault, errors
from rescoldo.role.load import get_role, samples_file
from rescoldo.role.metrics import Score
from rescoldo.role.prompt import fields_used
from rescoldo.role.role import Role
from rescoldo.role.schema import unknown_keywords

PATIENCE = 5.0  # maximum seconds of one call into the role: a score, a prompt, a check
PATIENCE_AT_IMPORT = 60.0  # seconds: a role's Python may import large packages
SHOWN = 4  # maximum examples of the same problem
GARBAGE = {
    "nothing": "",
    "blanks": " \n\t ",
    "prose": "Sure! Here is what you asked for.",
    "a number": "42",
    "a list": "- a\n- b\n",
    "an empty object": "{}",
    "broken YAML": "a: [1, 2",
    "a long line": "word " * 20_000,
    "deep nesting": "[" * 50_000,
    "aliases": "a: &a [x]\nb: [" + "*a, " * 5000 + "]",
    "half a surrogate pair": "\ud800",
    "a fence": "```yaml\n```",
}


@dataclass(frozen=True)
class Result:
    """The result of one check.

    Attributes:
        ok: whether the check has passed; one that has passed and has a `fix` is a warning.
        details: the findings, for people.
        fix: what to do; "" if there is nothing to do.
    """

    name: str
    ok: bool
    details: list[str]
    fix: str = ""


class _TooSlowError(BaseException):
    """A call has taken too long. Not an Exception, so that the role's own `except Exception` does not catch it."""


def check_role(name: str) -> tuple[Role, list[Result]]:
    """Check a role by name or path. Calls into the role are limited to PATIENCE seconds (on the main thread).

    Returns:
        The role and the results; the role is usable if all of them are ok.

    Raises:
        RescoldoError: its file cannot be read, or refers to Python that cannot be loaded.
    """
    role = get_role(name)
    results = [Result("file", True, [role.source])]
    try:
        with _within(PATIENCE_AT_IMPORT, "importing the role's Python"):
            role.ready()
        results += [*_schema(role), *_template(role)]
        results += _with_samples(role)
    except _TooSlowError as slow:
        fix = "make it faster: it runs for each record or answer; the remaining checks were skipped"
        results.append(Result("time", False, [str(slow)], fix))
    return role, results


@contextlib.contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    """Interrupts the block after a time limit. Signals reach the main thread only: in other threads there is no limit.

    Raises:
        _TooSlowError: it took longer, even if the block has caught the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late = False

    def stop(*_: object) -> None:
        nonlocal late
        late = True
        raise _TooSlowError(f"{what} takes longer than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # repeated, in case a bare `except` catches it in a loop
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
    if late:
        raise _TooSlowError(f"{what} takes longer than {seconds:g} s")


def read_samples(role: Role) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The role's valid samples, and the faults of the others.

    Raises:
        RescoldoError: their file cannot be read, or the role's own check fails.
    """
    raw, where, faults = _raw_samples(role)
    records: list[dict[str, Any]] = []
    for number, record in raw:
        with _within(PATIENCE, f"checking {where}:{number}"):
            found, whole = role.checked(record, where, number)
        faults += errors(found)
        records += [whole] if whole is not None else []
    return records if not faults else [], faults


def _raw_samples(role: Role) -> tuple[list[tuple[int, dict[str, Any]]], str, list[Fault]]:
    """(number from 1, sample) as in their file; its name; and the lines that are not JSON."""
    from rescoldo.data.records import read_lines

    path = samples_file(role)
    if path is None:
        listed = role.spec.samples if isinstance(role.spec.samples, list) else []
        return list(enumerate(listed, 1)), f"{role.source}, samples", []
    lines = list(read_lines(path))
    faults = [fault for line in lines for fault in line.faults]
    return [(line.number, line.value) for line in lines if line.value is not None], str(path), faults


def _schema(role: Role) -> Iterator[Result]:
    """Keywords that JSON Schema does not have, which are ignored silently."""
    found = unknown_keywords(role.spec.schema_)
    if not found:
        return
    meant = any(near for _, near in found)
    details = [
        f"`{name}` is not a keyword of JSON Schema{f': did you mean `{near}`?' if near else ''}" for name, near in found
    ]
    yield Result(
        "schema", not meant, details, "fix it, or remove it: it has no effect; your own annotations begin with x-"
    )


def _template(role: Role) -> Iterator[Result]:
    """Check the fields of the prompt: it uses the input, and not the answer."""
    if role.spec.prompt is None:
        return
    used = set[str]().union(*(fields_used(template) for _, template in role.spec.templates()))
    asked = {role.input, "turns"} if role.spec.conversational else {role.input}
    if role.spec.answer in used:
        what = f"it uses `{role.spec.answer}`, the answer to learn"
        yield Result("prompt", False, [what], "remove it: a model cannot learn an answer that is in the prompt")
    if not used & asked:
        what = f"it does not use `{role.input}`, the input"
        yield Result("prompt", True, [what], f"put {{{{ {role.input} }}}} where the record's input belongs")


def _with_samples(role: Role) -> Iterator[Result]:
    """The samples, and if they are valid, how the role handles them."""
    try:
        samples, faults = read_samples(role)
    except RescoldoError as error:
        yield Result("samples", False, [f"{error.where}: {error.what}"], error.fix)
        return
    if faults:
        yield Result(
            "samples", False, [f"{f.where}: {f.what}" for f in faults], "fix the samples, or the role's requirements"
        )
    elif not samples:
        why = "there are none: expected two or more that show what the role is about"
        yield Result("samples", False, [why], "samples: samples.jsonl, with records, next to role.yaml")
    if faults or not samples:
        return
    yield Result("samples", True, [f"{len(samples)}"])
    if role.spec.mend:
        yield _mend(role)
    yield _prompts(role, samples)
    yield from _scores(role, samples)
    yield from _clashes(role, samples[0])


def _mend(role: Role) -> Result:
    """Whether samples corrected by the role's own mend are valid."""
    raw, where, _ = _raw_samples(role)
    faults = []
    for number, record in raw:
        try:
            with _within(PATIENCE, f"running mend on {where}:{number}"):
                mended, _ = role.mend(copy.deepcopy(record), f"{where}:{number}")
                found = errors(role.check(mended, where, number))
        except RescoldoError as error:
            return Result("mend", False, [f"{error.where}: {error.what}"], error.fix)
        faults += [f"{fault.where}: after mend it {fault.what}" for fault in found]
    fix = "fix the function: it must return a record that passes the role's check"
    return Result("mend", False, faults, fix) if faults else Result("mend", True, ["the corrected samples are valid"])


def _prompts(role: Role, samples: list[dict[str, Any]]) -> Result:
    texts = ["\n\n".join(turn["content"] for turn in role.messages(record)) for record in samples]
    faults = [f"sample {i}: the prompt is empty" for i, text in enumerate(texts, 1) if not text.strip()]
    if len(set(texts)) < len(texts):
        faults.append("two samples have the same prompt: does it use the record's input?")
    shared = next((i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
    found = f"{min(map(len, texts))} to {max(map(len, texts))} characters; the first {shared} are the same for all"
    if faults:
        return Result("prompt", False, faults, "put the input into the prompt, or remove the repeated sample")
    return Result("prompt", True, [found])


def _scores(role: Role, samples: list[dict[str, Any]]) -> Iterator[Result]:
    """Check the metric: right answers score 1, garbage scores less, and no text makes it fail."""
    own = [(f"sample {i}", role.target(record), record) for i, record in enumerate(samples, 1)]
    garbage = [(name, text, samples[0]) for name, text in GARBAGE.items()]
    scores: dict[str, Score] = {}
    for name, text, record in [*own, *garbage]:
        with _within(PATIENCE, f"scoring {name}"):
            scores[name] = role.score(text, record)
    yield from _failures(scores)
    sound = {name: score for name, score in scores.items() if not score.failures}
    wrong = [_imperfect(name, sound[name]) for name, _, _ in own if name in sound and not _is_one(sound[name])]
    if wrong:
        yield Result(
            "own answers", False, wrong, "fix the sample, the schema or the metric: a reference answer must score 1"
        )
    elif all(name in sound for name, _, _ in own):
        yield Result("own answers", True, ["each scores 1"])
    taken = [name for name in GARBAGE if name in sound and _is_one(sound[name])]
    if taken:
        what = f"{len(taken)} of {len(GARBAGE)} kinds score 1 like a perfect answer: {_some(taken)}"
        yield Result("garbage", False, [what], "fix the metric: it must distinguish right answers from others")
    elif all(name in sound for name in GARBAGE):
        yield Result("garbage", True, [f"{len(GARBAGE)} kinds, all from 0 to below 1"])


def _failures(scores: dict[str, Score]) -> Iterator[Result]:
    """One result for each kind of failure of a function."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, score in scores.items():
        for label, why in score.failures.items():
            found.setdefault((label, why), []).append(name)
    details = [
        f"`{label}` failed on {len(names)} of {len(scores)} answers ({_some(names)}): {why}"
        for (label, why), names in found.items()
    ]
    if details:
        fix = "fix the function: for any text of a model it must return numbers from 0 to 1"
        yield Result("metric", False, details, fix)


def _is_one(score: Score) -> bool:
    return math.isclose(score.total, 1.0, abs_tol=1e-9)


def _imperfect(name: str, score: Score) -> str:
    notes = "; ".join(score.notes[:3])
    return f"{name}: its own answer scores {score.total:.3f}, not 1{': ' + notes if notes else ''}"


def _clashes(role: Role, record: dict[str, Any]) -> Iterator[Result]:
    """Components that two metrics both return, of which only the last one's counts."""
    owners: dict[str, list[str]] = {}
    for name in role.spec.metric:
        alone = replace(role, spec=role.spec.model_copy(update={"metric": [name]}))
        for component in alone.score(role.target(record), record).components:
            owners.setdefault(component, []).append(name)
    details = [
        f"the component `{component}` comes from both {' and '.join(names)}: only the last one counts"
        for component, names in owners.items()
        if len(names) > 1
    ]
    if details:
        yield Result("metric", False, details, "rename the function, or the components that it returns")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
