"""Splitting a dataset into training and validation files: by seed, and with no input on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rescoldo.data.audit import by_words, key_of
from rescoldo.data.fix import refuse_existing, unwritable, write_bytes
from rescoldo.data.preferences import form_of, read_preferences
from rescoldo.data.records import is_prose, read_lines, read_records
from rescoldo.data.similar import near_pairs
from rescoldo.data.text import KEY, LIKENESS, is_text, read_documents
from rescoldo.errors import RescoldoError
from rescoldo.role import Role, get_role
from rescoldo.role.record import Record
from rescoldo.words import same


@dataclass(frozen=True)
class Split:
    """Indices of records, in file order; `grouped` counts records that were kept together with a near-duplicate."""

    train: list[int]
    val: list[int]
    grouped: int


def split_indices(
    concepts: list[str], share: float, seed: int, keys: list[str] | None = None, *, signs: bool = False
) -> Split:
    """Divide records by their concepts.

    Equal and nearly equal concepts (data.similar) stay together. Groups are ordered by a hash of seed and concept, so
    the division does not depend on the file's order and changes little when records are added.

    Args:
        concepts: each record's input, as text.
        share: the fraction of the records that goes into validation, 0..1 exclusive.
        keys: equal for records with the same input; by default the concepts' words. If given, equal concepts with
            different keys (the same question under another system message) may be separated; and if all concepts are
            near-duplicates of each other, only those with equal keys stay together.
        signs: see similar.near_pairs.

    Raises:
        RescoldoError: `share` is out of range, or there are fewer than two different concepts.
    """
    if not 0 < share < 1:
        raise RescoldoError(
            f"{share} is not between 0 and 1", where="--val", fix="--val 0.2 keeps a fifth for validation"
        )
    names = keys or [same(concept) for concept in concepts]
    near = [(i, j) for i, j, _ in near_pairs(concepts, signs=signs) if keys is None or concepts[i] != concepts[j]]
    groups = _groups(names, near)
    if len(groups) < 2 and keys is not None:
        groups = _groups(names, [])
    if len(groups) < 2:
        raise RescoldoError(f"{len(groups)} different concept: nothing to split", fix="add examples first")

    def order(members: list[int]) -> str:
        return min(hashlib.sha256(f"{seed}\n{names[i]}".encode()).hexdigest() for i in members)

    wanted = min(max(1, round(share * len(concepts))), len(concepts) - 1)
    ordered = sorted(groups, key=order)
    val: list[int] = []
    for members in ordered:
        if len(val) + len(members) <= wanted:
            val += members
    if not val:  # every group is larger than the validation set should be
        val = min(ordered, key=len)
    chosen = set(val)
    train = [i for i in range(len(concepts)) if i not in chosen]
    return Split(train, sorted(val), sum(len(members) for members in groups if len(members) > 1))


def _groups(names: list[str], near: list[tuple[int, int]]) -> list[list[int]]:
    """Indices that must stay together: those with equal names, and near pairs."""
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, name in enumerate(names):
        parent[root(i)] = root(first.setdefault(name, i))
    for later, earlier in near:
        parent[root(later)] = root(earlier)
    groups: dict[int, list[int]] = {}
    for i in range(len(names)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def split_files(
    paths: Sequence[Path], share: float, seed: int, train_out: Path, val_out: Path, role: Role | None = None
) -> Split:
    """Split one or several files; lines are copied unchanged. The default `role` is ba.

    Raises:
        RescoldoError: faults in a file, an output that exists already, or nothing to split.
    """
    outputs = {train_out.resolve(), val_out.resolve()}
    if len(outputs) < 2 or outputs & {path.resolve() for path in paths}:
        raise RescoldoError(
            "input, --train-out and --val-out must be three different files",
            where=", ".join(map(str, paths)),
            fix="name two new files",
        )
    inputs = [path.resolve() for path in paths]
    twice = [str(path) for i, path in enumerate(paths) if inputs[i] in inputs[:i]]
    if twice:
        raise RescoldoError("the same file is named twice", where=twice[0], fix="name it once")
    role = role or get_role()
    forms = [form_of(path) for path in paths]
    texts = [path for path in paths if is_text(path, role)]
    if texts:
        records: list[Record] = _documents(paths, texts)
    elif any(forms):
        records = [record for path, form in zip(paths, forms, strict=True) for record in _preferred(path, role, form)]
        role = get_role("generic")  # its records have the prompt that both answers share
    else:
        records = [record for path in paths for record in read_records(path, role)]
    for output in (train_out, val_out):
        refuse_existing(output)
    if texts:
        keys: list[str] | None = [record[KEY].strip() for record in records]
        split = split_indices([record[KEY][:LIKENESS] for record in records], share, seed, keys, signs=True)
    else:
        keys = None if by_words(role) else [key_of(role, record) for record in records]
        split = split_indices(
            [role.question(record) for record in records], share, seed, keys, signs=not by_words(role)
        )
    raw = [line.raw for path in paths for line in read_lines(path)]
    for output, indices in ((train_out, split.train), (val_out, split.val)):
        try:
            write_bytes(output, b"".join(raw[i] + b"\n" for i in indices))
        except OSError as error:
            train_out.unlink(missing_ok=True)
            raise unwritable(output, error) from None
    return split


def _preferred(path: Path, role: Role, form: str | None) -> list[Record]:
    """The first answer of each line of a preference file, with its prompt.

    Raises:
        RescoldoError: faults in the file, or it is not a preference file.
    """
    if form is None:
        what = "holds no preferences, but another file does: expected files of one kind"
        raise RescoldoError(what, where=str(path), fix="split them one at a time")
    return [judgement.answers[0] for judgement in read_preferences(path, role, form)]


def _documents(paths: Sequence[Path], texts: Sequence[Path]) -> list[Record]:
    """The documents of files of `text` rows.

    Raises:
        RescoldoError: some files are not plain text, or are a single document, which cannot be split.
    """
    whole = next((path for path in texts if is_prose(path)), None)
    if whole is not None:
        what, fix = (
            "is a single document, which cannot be split",
            'name other files as --val; or make rows of {"text": …}',
        )
        raise RescoldoError(what, where=str(whole), fix=fix)
    if len(texts) < len(paths):
        other = next(path for path in paths if path not in texts)
        raise RescoldoError(f"is not plain text, but {texts[0]} is", where=str(other), fix="split them one at a time")
    return [record for path in paths for record in read_documents(path)]
