"""Is a role fit to be trained with: its file, its samples, its prompt, and a metric that keeps its promises."""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.role.fault import Fault
from rescoldo.role.load import get_role, samples_file
from rescoldo.role.metrics import Score
from rescoldo.role.role import Role

PATIENCE = 5.0  # seconds for one answer's score
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
    """One thing that was looked at; `details` says in words what is wrong, or what was found."""

    name: str
    ok: bool
    details: list[str]


def check_role(name: str) -> tuple[Role, list[Result]]:
    """Look at a role by name or path.

    Returns:
        The role, and what was found; the role is fit if all of it is ok.

    Raises:
        RescoldoError: its file cannot be read, or names Python that cannot be loaded.
    """
    role = get_role(name).ready()
    samples, faults = read_samples(role)
    results = [Result("file", True, [role.source])]
    if not samples and not faults:
        why = "there are none: a role shows with two or more what it teaches"
        return role, [*results, Result("samples", False, [why])]
    results.append(Result("samples", not faults, [f"{f.where}: {f.what}" for f in faults] or [f"{len(samples)}"]))
    if faults:
        return role, results
    return role, [*results, _prompts(role, samples), _perfect(role, samples), _garbage(role, samples[0])]


def read_samples(role: Role) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The role's samples, read; and what is wrong with them.

    Raises:
        RescoldoError: their file cannot be read.
    """
    from rescoldo.data.records import read_lines

    path = samples_file(role)
    raw: list[tuple[int, dict[str, Any]]] = []
    faults: list[Fault] = []
    if path is not None:
        for line in read_lines(path):
            faults += line.faults
            raw += [(line.number, line.value)] if line.value is not None else []
    elif isinstance(role.spec.samples, list):
        raw = list(enumerate(role.spec.samples, 1))
    where = f"{role.source}, samples" if path is None else str(path)
    for number, record in raw:
        faults += [fault for fault in role.check(record, where, number) if fault.level == "error"]
    return [role.read(record) for _, record in raw] if not faults else [], faults


def _prompts(role: Role, samples: list[dict[str, Any]]) -> Result:
    texts = ["\n\n".join(turn["content"] for turn in role.messages(record)) for record in samples]
    faults = [f"sample {i}: the prompt is empty" for i, text in enumerate(texts, 1) if not text.strip()]
    if len(set(texts)) < len(texts):
        faults.append("two samples have the same prompt: does it use the record's input?")
    shared = next((i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
    found = f"{min(map(len, texts))} to {max(map(len, texts))} characters; the first {shared} are the same for all"
    return Result("prompt", not faults, faults or [found])


def _perfect(role: Role, samples: list[dict[str, Any]]) -> Result:
    faults = []
    for i, record in enumerate(samples, 1):
        score = role.score(role.target(record), record)
        if not math.isclose(score.total, 1.0, abs_tol=1e-9):
            notes = "; ".join(score.notes[:3])
            faults.append(f"sample {i}: its own answer scores {score.total:.3f}, not 1{': ' + notes if notes else ''}")
    return Result("own answers", not faults, faults or ["each scores 1"])


def _garbage(role: Role, record: dict[str, Any]) -> Result:
    faults = []
    for name, text in GARBAGE.items():
        began = time.monotonic()
        try:
            score = role.score(text, record)
        except RescoldoError:
            raise
        except Exception as error:  # the metric must not raise, whatever the text
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
            continue
        faults += [f"{name}: {why}" for why in _unfit(role, score)]
        if time.monotonic() - began > PATIENCE:
            faults.append(f"{name}: took {time.monotonic() - began:.0f} s to score")
    return Result("garbage", not faults, faults or [f"{len(GARBAGE)} kinds, all between 0 and below 1"])


def _unfit(role: Role, score: Score) -> list[str]:
    values = [score.total, *score.components.values()]
    if not all(isinstance(value, float) and 0 <= value <= 1 for value in values):
        return [f"scores {score.total}, a number between 0 and 1 is wanted"]
    if score.failures:
        return list(score.failures.values())
    return ["scores 1 like a perfect answer"] if score.total == 1 else []


def write_skeleton(name: str, folder: Path) -> None:
    """Write a commented role that passes the check: folder/role.yaml and folder/samples.jsonl.

    Raises:
        RescoldoError: the name is no role's name, or the folder is there already.
    """
    from rescoldo.files import write_text
    from rescoldo.role.skeleton import ROLE, SAMPLES

    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,49}", name):
        raise RescoldoError(
            f"{name[:60]!r} is no name for a role", where="NAME", fix="small letters, digits, - and _: release-notes"
        )
    if os.path.lexists(folder):
        raise RescoldoError("exists already and is not overwritten", where=str(folder), fix="-o ANOTHER_FOLDER")
    try:
        write_text(folder / "samples.jsonl", SAMPLES)
        write_text(folder / "role.yaml", ROLE.replace("NAME", name))
    except OSError as error:
        raise RescoldoError(f"cannot be written: {error.strerror or error}", where=str(folder)) from None
