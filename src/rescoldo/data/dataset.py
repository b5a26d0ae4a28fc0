"""A dataset file as the engine takes it: read, checked, tokenized."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.data.audit import key_of
from rescoldo.data.records import Record, read_records
from rescoldo.data.template_check import check_template
from rescoldo.data.tokenize import refuse_control_tokens, tokenize_records
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.role import Role


@dataclass(frozen=True)
class Dataset:
    """One dataset file, tokenized.

    Attributes:
        names: of each example, as an error message names it ("ba_train.jsonl:7 (Online booking…)").
        overruns: examples left out because they are longer than max_length.
        digest: SHA-256 over the tokens, in hexadecimal: what the model sees, whatever the file is called.
        file_digest: SHA-256 of the file.
        notes: habits of the model's chat template that these conversations meet, in words.
        inputs: of each record, left-out ones included: its line; a digest, equal where the same is asked; the question.
    """

    path: Path
    examples: list[Example]
    names: list[str]
    overruns: list[str]
    digest: str
    file_digest: str
    notes: tuple[str, ...] = ()
    inputs: tuple[tuple[int, str, str], ...] = ()

    @property
    def tokens(self) -> int:
        """All tokens of all sequences, prompts included."""
        return sum(example.n_tokens for example in self.examples)


def digest(examples: list[Example]) -> str:
    """SHA-256 over what the model sees of these examples."""
    content = hashlib.sha256()
    for example in examples:
        content.update(f"{example.n_prompt}:{','.join(map(str, example.tokens))}\n".encode())
        if example.weights is not None:
            content.update(f"{','.join(map(repr, example.weights))}\n".encode())
    return content.hexdigest()


def read_dataset(
    path: Path,
    role: Role,
    tokenizer: Any,
    max_length: int,
    limit: int | None,
    records: Sequence[Record] | None = None,
) -> Dataset:
    """Tokenize a dataset file; read it, unless its `records` are given.

    Raises:
        RescoldoError: faults in the file, or nothing left to use.
    """
    records = (read_records(path, role) if records is None else records)[:limit]
    refuse_control_tokens(path, records, role, tokenizer)
    notes = tuple(check_template(path, records, role, tokenizer))
    tokenized = tokenize_records(records, role, tokenizer, max_length)
    if not tokenized.examples:
        line, tokens = min(tokenized.overruns, key=lambda overrun: overrun[1])
        raise RescoldoError(
            f"every example is longer than {max_length} tokens",
            where=str(path),
            fix=longer(tokens, tokenizer.model_max_length, f"would let in the shortest (line {line})"),
        )
    names = [f"{path.name}:{records[i].line} ({short(role.key(records[i]))})" for i in tokenized.kept]
    overruns = [f"line {line} ({tokens} tokens)" for line, tokens in tokenized.overruns]
    return Dataset(
        path,
        tokenized.examples,
        names,
        overruns,
        digest(tokenized.examples),
        sha256(path),
        notes,
        inputs=inputs_of(records, role),
    )


def inputs_of(records: Sequence[Record], role: Role) -> tuple[tuple[int, str, str], ...]:
    """See Dataset.inputs."""
    return tuple(
        (record.line, hashlib.sha256(key_of(role, record).encode()).hexdigest(), role.question(record))
        for record in records
    )


def longer(tokens: int, context: int, effect: str) -> str:
    """What to do so that an example of so many tokens is not left out; `context` is the model's."""
    if tokens <= context:
        return f"--max-length {tokens} {effect}"
    return f"shorten the examples, or take a model with a longer context: this one's has {context} tokens, not {tokens}"


def short(text: str) -> str:
    """A question as a list names it."""
    return text if len(text) <= 40 else text[:39] + "…"
