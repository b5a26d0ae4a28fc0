"""Reading a training file of any kind: answers to learn, pairs of answers, or answers with a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rescoldo.data import dataset, preferences
from rescoldo.data.dataset import Dataset
from rescoldo.data.preference_dataset import preference_dataset
from rescoldo.data.teaching import ExtraText, Teaching
from rescoldo.role import Role

ANSWERS = "answers"  # the form of files with one answer to learn; preferences.FORMS has the other forms


def check_dataset(path: Path, role: Role, form: str = ANSWERS) -> Sequence[Any]:
    """The records of a file, checked, for read_dataset.

    Raises:
        RescoldoError: one error that names file, line and field of the first faults.
    """
    if form in preferences.FORMS:
        return preferences.read_preferences(path, role, form)
    return dataset.check_dataset(path, role)


def read_dataset(
    path: Path,
    role: Role,
    tokenizer: Any,
    max_length: int,
    limit: int | None,
    records: Sequence[Any] | None = None,
    teaching: Teaching | None = None,
    extra_text: ExtraText | None = None,
    form: str = ANSWERS,
) -> Dataset:
    """Tokenize a file; read it, unless its `records` are given, as check_dataset returned them.

    Args:
        limit, teaching, extra_text: see dataset.read_dataset; with preferences only the last answers are compared.

    Raises:
        RescoldoError: faults in the file, or no examples left.
    """
    if form in preferences.FORMS:
        return preference_dataset(path, role, tokenizer, max_length, limit, form, records)
    return dataset.read_dataset(path, role, tokenizer, max_length, limit, records, teaching, extra_text)
