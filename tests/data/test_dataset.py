"""The dataset in the repository keeps what its data card promises."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from rescoldo.data import Record, read_records
from rescoldo.data.audit import audit, sentences
from rescoldo.data.similar import grams
from rescoldo.role import get_role
from rescoldo.role.ba_records import COUNTS
from rescoldo.words import same

FOLDER = Path(__file__).parents[2] / "artifacts" / "synthetic"
FILES = {"train": FOLDER / "ba_train_v2_fixed.jsonl", "val": FOLDER / "ba_val_v2_fixed.jsonl"}


@cache
def records(name: str) -> list[Record]:
    return read_records(FILES[name])


def everything() -> list[Record]:
    return records("train") + records("val")


def test_sizes() -> None:
    assert (len(records("train")), len(records("val"))) == (98, 22)


def test_audit_finds_nothing() -> None:
    assert audit(list(FILES.values())).faults == []


def test_variety() -> None:
    domains = Counter(record["domain"] for record in everything())
    assert len(domains) >= 15
    assert max(domains.values()) <= len(everything()) / 5
    lengths = [len(record["concept"].split()) for record in everything()]
    assert min(lengths) <= 15
    assert max(lengths) >= 60
    assert 5 <= sum(record["language"] == "es" for record in everything()) <= 60


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    least, most = COUNTS[name]
    counts = {len(record["requirements"][name]) for record in everything()}
    assert min(counts) >= least
    assert max(counts) <= most
    assert len(counts) > 1


def test_no_two_examples_share_a_requirement() -> None:
    owners: dict[str, int] = {}
    for index, record in enumerate(everything()):
        for sentence in sentences(get_role("ba"), record):
            assert owners.setdefault(same(sentence), index) == index, sentence


def test_requirements_are_not_filled_into_templates() -> None:
    """Between examples no two requirement sentences share most of their 5-grams."""
    owners: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    gram_sets = [[grams(sentence) for sentence in sentences(get_role("ba"), record)] for record in everything()]
    for index, of_record in enumerate(gram_sets):
        for place, own in enumerate(of_record):
            shared = Counter(owner for gram in own for owner in owners.get(gram, []) if owner[0] != index)
            for (other, there), count in shared.items():
                overlap = count / min(len(own), len(gram_sets[other][there]))
                assert overlap < 0.5, (sentences(everything()[index])[place], sentences(everything()[other])[there])
        for place, own in enumerate(of_record):
            for gram in own:
                owners.setdefault(gram, []).append((index, place))


def test_no_validation_concept_is_a_rewording_of_a_training_concept() -> None:
    train = [(record["concept"], grams(record["concept"])) for record in records("train")]
    for record, (concept, known) in product(records("val"), train):
        own = grams(record["concept"])
        assert len(own & known) / min(len(own), len(known)) < 0.2, (record["concept"], concept)


def test_all_targets_are_perfect() -> None:
    role = get_role("ba")
    for record in everything():
        score = role.score(role.target(record))
        assert score.total == 1.0, (record.line, score.notes)
