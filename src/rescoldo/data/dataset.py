"""A dataset file, read, checked and tokenized for the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rescoldo.data.audit import key_of
from rescoldo.data.records import read_records
from rescoldo.data.teaching import ExtraText, Teaching
from rescoldo.data.template_check import check_template
from rescoldo.data.text import KEY, LIKENESS, Document, chosen, is_text, read_documents, text_windows
from rescoldo.data.tokenize import refuse_control_tokens, refuse_marks_in_text, tokenize_records
from rescoldo.engine.types import Example, Judged
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.role import Role
from rescoldo.role.record import Record


@dataclass(frozen=True)
class Overrun:
    """An example that is left out because it is longer than max_length.

    Attributes:
        line: its line in the file, from 1.
        tokens: its length; None if it is not known.
        file: the file's name, if it is not the dataset's own file.
    """

    line: int
    tokens: int | None = None
    file: str = ""

    def __str__(self) -> str:
        length = "" if self.tokens is None else f" ({self.tokens} tokens)"
        return f"line {self.line}{length}{f' of {self.file}' if self.file else ''}"


@dataclass(frozen=True)
class Dataset:
    """One dataset file, tokenized.

    Attributes:
        names: each example's name in error messages ("ba_train.jsonl:7 (Online booking…)").
        overruns: examples left out because they are longer than max_length.
        digest: SHA-256 over the tokens, in hexadecimal; it does not depend on the file's name.
        file_digest: SHA-256 of the file.
        notes: warnings about what the model's chat template does to these conversations.
        replayed: the old dataset of which some examples were mixed in (data.replay).
        inputs: for each record, also those left out: its line, a digest that is equal for equal inputs, the question.
            For plain text: for each document.
        texts: how many of the examples are windows of plain text; these come last.
    """

    path: Path
    examples: list[Example]
    names: list[str]
    overruns: list[Overrun]
    digest: str
    file_digest: str
    notes: tuple[str, ...] = ()
    inputs: tuple[tuple[int, str, str], ...] = ()
    replayed: Dataset | None = None
    texts: int = 0

    @property
    def is_text(self) -> bool:
        """Whether the dataset is plain text only."""
        return self.texts == len(self.examples)

    @property
    def tokens(self) -> int:
        """The number of tokens in all sequences, prompts included."""
        return sum(example.n_tokens for example in self.examples)


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 over the tokens of these examples, and over which answers are preferred."""
    content = hashlib.sha256()
    for example in examples:
        for one in example.scored:
            content.update(f"{one.n_prompt}:{','.join(map(str, one.tokens))}\n".encode())
            if one.weights is not None:
                content.update(f"{','.join(map(repr, one.weights))}\n".encode())
            if one.documents:
                content.update(f"documents {','.join(map(str, one.documents))}\n".encode())
        if isinstance(example, Judged):
            content.update(b"good\n" if example.good else b"bad\n")
    return content.hexdigest()


def check_dataset(path: Path, role: Role) -> Sequence[Record]:
    """The checked records of a training file: the role's records, or documents of plain text.

    Raises:
        RescoldoError: faults in the file.
    """
    return read_documents(path) if is_text(path, role) else read_records(path, role)


def read_dataset(
    path: Path,
    role: Role,
    tokenizer: Any,
    max_length: int,
    limit: int | None,
    records: Sequence[Record] | None = None,
    teaching: Teaching | None = None,
    extra_text: ExtraText | None = None,
) -> Dataset:
    """Tokenize a dataset file. It is read unless `records` has its records.

    Args:
        limit: use only the first `limit` records (documents of plain text).
        teaching: which parts of a record are learned.
        extra_text: plain text that is learned together with the file.

    Raises:
        RescoldoError: faults in a file, or no examples left.
    """
    records = (check_dataset(path, role) if records is None else records)[:limit]
    documents = [record for record in records if isinstance(record, Document)]
    if documents:
        data = _text_dataset(path, documents, tokenizer, max_length)
    else:
        data = _record_dataset(path, records, role, tokenizer, max_length, teaching or Teaching())
    return data if extra_text is None else _mixed(data, extra_text, tokenizer, max_length)


def _record_dataset(
    path: Path, records: Sequence[Record], role: Role, tokenizer: Any, max_length: int, teaching: Teaching
) -> Dataset:
    refuse_control_tokens(path, records, role, tokenizer)
    notes = tuple(check_template(path, records, role, tokenizer, teaching))
    tokenized = tokenize_records(records, role, tokenizer, max_length, teaching)
    if not tokenized.examples:
        line, tokens = min(tokenized.overruns, key=lambda overrun: overrun[1])
        raise RescoldoError(
            f"every example is longer than {max_length} tokens",
            where=str(path),
            fix=longer(tokens, tokenizer.model_max_length, f"would let in the shortest (line {line})"),
        )
    examples, kept = tokenized.examples, tokenized.kept
    if teaching.balance:
        order = balanced(path, [role.target(records[i]) for i in kept])
        examples, kept = [examples[i] for i in order], [kept[i] for i in order]
    return Dataset(
        path,
        examples,
        [f"{path.name}:{records[i].line} ({short(role.key(records[i]))})" for i in kept],
        [Overrun(line, tokens) for line, tokens in tokenized.overruns],
        digest(examples),
        sha256(path),
        notes,
        inputs=inputs_of(records, role),
    )


def _text_dataset(path: Path, records: Sequence[Document], tokenizer: Any, max_length: int) -> Dataset:
    refuse_marks_in_text(path, records, tokenizer)
    windows = text_windows(records, tokenizer, min(max_length, tokenizer.model_max_length))
    if not windows:
        raise RescoldoError("holds too little text to learn from", where=str(path), fix="pass longer documents")
    names = [f"{path.name}, window {number}" for number in range(1, len(windows) + 1)]
    inputs = tuple(
        (record.line, hashlib.sha256(record[KEY].encode()).hexdigest(), record[KEY][:LIKENESS]) for record in records
    )
    made = digest(windows)
    return Dataset(path, windows, names, [], made, sha256(path), inputs=inputs, texts=len(windows))


def _mixed(data: Dataset, extra_text: ExtraText, tokenizer: Any, max_length: int) -> Dataset:
    """The dataset, followed by windows of plain text."""
    texts = [_text_dataset(path, read_documents(path), tokenizer, max_length) for path in extra_text.paths]
    windows = [window for text in texts for window in text.examples]
    names = [name for text in texts for name in text.names]
    places = chosen(windows, extra_text.share, data.tokens)
    examples = [*data.examples, *(windows[i] for i in places)]
    mixed = replace(
        data,
        examples=examples,
        names=[*data.names, *(names[i] for i in places)],
        digest=digest(examples),
        file_digest=hashlib.sha256(
            "".join([data.file_digest, *(one.file_digest for one in texts)]).encode()
        ).hexdigest(),
        texts=data.texts + len(places),
    )
    reached = 1 - data.tokens / mixed.tokens
    if extra_text.share is not None and reached < 0.9 * extra_text.share:
        wanted = f"expected {extra_text.share:.0%} of all tokens"
        note = f"the text is too short for its share: {wanted}, got {reached:.0%}"
        return replace(mixed, notes=(*mixed.notes, note))
    return mixed


def balanced(path: Path, labels: Sequence[str]) -> list[int]:
    """Indices of examples such that each label occurs equally often: examples of rarer labels are repeated, in turn, up
    to the count of the most frequent label (random oversampling without the randomness).

    Raises:
        RescoldoError: most of the labels occur only once, so they are not classes.
    """
    places: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    if len(places) < 2 or len(places) > len(labels) / 2:
        what = f"holds {len(places)} different answers in {len(labels)} examples: these are not classes to be balanced"
        raise RescoldoError(what, where=str(path), fix="leave --balance-classes out; it is for labels")
    most = max(map(len, places.values()))
    return sorted(own[i % len(own)] for own in places.values() for i in range(most))


def inputs_of(records: Sequence[Record], role: Role) -> tuple[tuple[int, str, str], ...]:
    """See Dataset.inputs."""
    return tuple(
        (record.line, hashlib.sha256(key_of(role, record).encode()).hexdigest(), role.question(record))
        for record in records
    )


def longer(tokens: int, context: int, effect: str) -> str:
    """The advice for an example of `tokens` tokens that would be left out; `context` is the model's context length."""
    if tokens <= context:
        return f"--max-length {tokens} {effect}"
    return f"shorten the examples, or take a model with a longer context: this one's has {context} tokens, not {tokens}"


def short(text: str) -> str:
    """A question, shortened for a list."""
    return text if len(text) <= 40 else text[:39] + "…"
