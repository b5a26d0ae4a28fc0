"""Checks of a run's input: base model and datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rescoldo.base.chat_templates import plain_note
from rescoldo.base.hub_id import REFETCH
from rescoldo.data.audit import by_words
from rescoldo.data.dataset import Dataset, longer
from rescoldo.data.records import flag
from rescoldo.data.similar import near_pairs
from rescoldo.doctor.check import Check, failure, ok, warning
from rescoldo.doctor.subject import Subject
from rescoldo.files import quote
from rescoldo.invocation import program
from rescoldo.role import Role
from rescoldo.units import count, gigabytes

FEW_TRAIN, FEW_VAL = 20, 5
NEAR_LIMIT = 3000  # maximum number of inputs for the search for near-duplicates
SHOWN = 3


def base_model(subject: Subject) -> Iterator[Check]:
    """The opened model: its shape, its files, its tokenizer and template. Opening has already compared the shards with
    the index, each file's length with its header, and each tensor's shape with the config."""
    base = subject.base
    if base is None:
        return
    files = base.weight_files
    size = sum(path.stat().st_size for path in files)
    shape = f"{base.config.architecture}, {base.config.total_params / 1e6:,.0f} M parameters"
    text = f"{base.spec} is whole: {shape}, {gigabytes(size)} in {len(files)} file{'s' if len(files) > 1 else ''}"
    wrong = list(base.disagreements())
    if wrong:
        yield failure("base model", "; ".join(wrong[:SHOWN]), REFETCH)
    else:
        yield ok(
            "base model", "; ".join(filter(None, (text, base.note()))), bytes=size, parameters=base.config.total_params
        )
    if subject.tokenizer is None:
        return
    template = plain_note(subject.tokenizer) or "with a chat template"
    yield ok("tokenizer", f"{len(subject.tokenizer):,} tokens, {template}")


def datasets(subject: Subject) -> Iterator[Check]:
    """Counts, tokens, overruns, and whether training and validation share inputs."""
    for name, data, few in (("training", subject.train, FEW_TRAIN), ("validation", subject.val, FEW_VAL)):
        if data is None:
            continue
        longest = max(len(example.tokens) for example in data.examples)
        text = f"{data.path}: {count(len(data.examples), 'example')}, {count(data.tokens, 'token')}, longest {longest}"
        figures = {"examples": len(data.examples), "tokens": data.tokens, "longest": longest}
        if data.overruns:
            what = f"{text}; {len(data.overruns)} are longer than --max-length and left out: {_some(data.overruns)}"
            lengths = [overrun.tokens for overrun in data.overruns if overrun.tokens is not None]
            remedy = "a larger --max-length, or shorter answers"
            if lengths:
                context = subject.base.config.max_positions if subject.base else max(lengths)
                remedy = longer(max(lengths), context, "lets all of them in")
            yield warning(f"{name} data", what, remedy, **figures, overruns=len(data.overruns))
        elif len(data.examples) < few:
            yield warning(f"{name} data", f"{text}: few", "more examples; the result depends on chance", **figures)
        else:
            yield ok(f"{name} data", text, **figures)
    if subject.train is not None and subject.val is not None and subject.role is not None:
        yield from leaks(subject.train, subject.val, subject.role)
        if subject.train.replayed is not None:
            yield from leaks(subject.train.replayed, subject.val, subject.role)


def leaks(train: Dataset, val: Dataset, role: Role) -> Iterator[Check]:
    """Inputs that occur in both files, exactly or nearly."""
    before, after = train.inputs, val.inputs
    name = role.input
    known = {key: line for line, key, _ in before}
    shared = [f"{val.path.name}:{line} = {train.path.name}:{known[key]}" for line, key, _ in after if key in known]
    remedy = _split_again(train.path, val.path, role)
    if shared:
        what = f"{len(shared)} validation {name}s are trained on, a score on them means nothing: {_some(shared)}"
        yield failure("leakage", what, remedy, shared=len(shared))
        return
    near: list[str] = []
    if len(before) + len(after) <= NEAR_LIMIT:
        texts = [text for _, _, text in [*before, *after]]
        pairs = near_pairs(texts, signs=not by_words(role))
        nearest = {later: earlier for later, earlier, _ in pairs if earlier < len(before) <= later}
        near = [
            f"{val.path.name}:{after[i - len(before)][0]} ~ {train.path.name}:{before[j][0]}"
            for i, j in nearest.items()
        ]
    if near:
        what = f"{len(near)} validation {name}s are close to trained ones: {_some(near)}"
        yield warning("leakage", what, remedy, near=len(near))
    else:
        yield ok("leakage", f"training and validation share no {name}")


def _split_again(train: Path, val: Path, role: Role) -> str:
    """The command that splits the records again, into two other files."""
    outputs = [quote(path.with_name(f"{path.stem}_split.jsonl")) for path in (train, val)]
    files = f"{quote(train)} {quote(val)} --train-out {outputs[0]} --val-out {outputs[1]}"
    return f"{program()} data split {files}{flag(role)}"


def _some(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:SHOWN])) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
