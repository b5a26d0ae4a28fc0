"""Answers that are labels: accuracy, macro F1 and the confusion table.

Labels are recognized by the dataset: at least two different short answers, each of which comes up twice on average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rescoldo.role import Role

MOST_CLASSES = 50
LONGEST = 60  # characters of a label


def classes_of(role: Role, records: Sequence[dict[str, Any]]) -> list[str]:
    """The classes that a dataset's answers are, in alphabetical order; [] where they are no labels."""
    if role.schema is not None or any(role.answer_of(record) is None for record in records):
        return []
    answers = [label_of(role.target(record)) for record in records]
    found = sorted(set(answers))
    few = 2 <= len(found) <= min(MOST_CLASSES, len(answers) // 2)
    return found if few and all(len(answer) <= LONGEST for answer in found) else []


def label_of(text: str) -> str:
    """An answer as a label: white space does not count."""
    return " ".join(text.split())


def figures(classes: Sequence[str], wanted: Sequence[str], said: Sequence[str]) -> dict[str, Any]:
    """How well labels were told apart.

    Precision is the share of a class's answers that are right, recall the share of its records that were found, F1
    their harmonic mean (0 where neither is defined), macro F1 the mean over the classes of the dataset, whatever their
    size. An answer that is none of the classes is wrong.

    Returns:
        accuracy, macro_f1; classes: each with label, precision, recall, f1, support; confusion: for each class, how
        often each class was the answer to its records, and `other` for what is none.
    """
    pairs = Counter((right, answer if answer in classes else None) for right, answer in zip(wanted, said, strict=True))
    rows: list[dict[str, Any]] = []
    for name in classes:
        hits = pairs[name, name]
        given = sum(count for (_, answer), count in pairs.items() if answer == name)
        support = sum(count for (right, _), count in pairs.items() if right == name)
        rows.append(
            {
                "label": name,
                "precision": hits / given if given else 0.0,
                "recall": hits / support if support else 0.0,
                "f1": 2 * hits / (given + support) if given + support else 0.0,
                "support": support,
            }
        )
    return {
        "accuracy": sum(pairs[name, name] for name in classes) / len(wanted),
        "macro_f1": sum(row["f1"] for row in rows) / len(rows),
        "classes": rows,
        "confusion": [
            {"label": right, "answers": [pairs[right, answer] for answer in classes], "other": pairs[right, None]}
            for right in classes
        ],
    }


def labels_part(
    role: Role, records: Sequence[dict[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The figures of a model's answers (rows of `predictions`); None where the dataset's answers are no labels."""
    classes = classes_of(role, records)
    if not classes:
        return None
    wanted = [label_of(role.target(records[row["example"]])) for row in rows]
    said = [label_of(role.said(row["text"], records[row["example"]])) for row in rows]
    return figures(classes, wanted, said)
