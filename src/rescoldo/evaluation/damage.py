"""Answers that are known to be worse: the data set's own, damaged. A judge has to tell them from the whole ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rescoldo.role import Role

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_FIGURE = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
_KEPT = ("id", "priority")  # of an item: its form, which is no sign of its content


@dataclass(frozen=True)
class Damaged:
    """A question of the exam.

    Attributes:
        example: index of the record.
        damage: its kind, a key of DAMAGES.
        whole, damaged: the record's own answer, and the one that is worse for certain.
    """

    example: int
    damage: str
    whole: str
    damaged: str


def exam_questions(role: Role, records: Sequence[dict[str, Any]], seed: int, most: int) -> list[Damaged]:
    """Questions from the records that have an answer, drawn by the seed: of each kind of damage about as many.

    Args:
        most: questions at most.

    Returns:
        None of them where fewer than two records have an answer.
    """
    answered = [i for i, record in enumerate(records) if role.answer_of(record) is not None]
    if len(answered) < 2:
        return []
    answers = [_parts(role, records[i]) for i in answered]
    wholes = [role.target(records[i]) for i in answered]
    by_kind: dict[str, list[Damaged]] = {}
    for kind, damage in DAMAGES.items():
        for place, example in enumerate(answered):
            others = answers[place + 1 :] + answers[:place]
            changed = damage(answers[place], others, role.question(records[example]))
            text = changed if isinstance(changed, str) else None if changed is None else _written(role, changed)
            if text is not None and text != wholes[place]:
                by_kind.setdefault(kind, []).append(Damaged(example, kind, wholes[place], text))
    for kind, found in by_kind.items():
        found.sort(key=lambda one: _draw(seed, kind, one))
    chosen: list[Damaged] = []
    while len(chosen) < most and any(by_kind.values()):
        chosen += [found.pop(0) for found in by_kind.values() if found]
    return chosen[:most]


def _draw(seed: int, kind: str, one: Damaged) -> bytes:
    return hashlib.sha256(f"{seed} {kind} {one.example} {one.whole}".encode("utf-8", "replace")).digest()


def _parts(role: Role, record: dict[str, Any]) -> Any:
    """An answer as it is damaged: its value, or the text."""
    return role.answer_of(record) if role.schema else role.target(record)


def _written(role: Role, value: Any) -> str:
    return role.target({role.input: "", role.spec.answer: value})


def _another(answer: Any, others: Sequence[Any], question: str) -> Any:
    """The answer to another input."""
    return others[0]


def _shuffled(answer: Any, others: Sequence[Any], question: str) -> Any:
    """Each item, or sentence, from another input's answer; title and introduction stay."""
    if isinstance(answer, str):
        pieces = _SENTENCE.split(answer.strip())
        if len(pieces) < 2:
            return None
        taken = [_SENTENCE.split(str(others[k % len(others)]).strip()) for k in range(len(pieces))]
        return " ".join([pieces[0], *(found[(k + 1) % len(found)] for k, found in enumerate(taken[1:]))])

    def swap(name: str, items: list[Any]) -> list[Any]:
        lists = [other[name] for other in others if isinstance(other, dict) and isinstance(other.get(name), list)]
        lists = [found for found in lists if found]
        if not lists:
            return items
        return [_dressed(item, lists[k % len(lists)][k % len(lists[k % len(lists)])]) for k, item in enumerate(items)]

    return _lists_changed(answer, swap)


def _repeated(answer: Any, others: Sequence[Any], question: str) -> Any:
    """One item, or sentence, in the place of all."""
    if isinstance(answer, str):
        pieces = _SENTENCE.split(answer.strip())
        return " ".join([pieces[0]] * len(pieces)) if len(pieces) > 1 else None
    return _lists_changed(answer, lambda name, items: [_dressed(item, items[0]) for item in items])


def _figures(answer: Any, others: Sequence[Any], question: str) -> Any:
    """The figures that the answer has from its input, altered."""
    asked = set(_FIGURE.findall(question))

    def altered(match: re.Match[str]) -> str:
        return _altered(match[0]) if match[0] in asked else match[0]

    return _texts_changed(answer, lambda text: _FIGURE.sub(altered, text))


DAMAGES: dict[str, Callable[[Any, Sequence[Any], str], Any]] = {
    "another": _another,
    "shuffled": _shuffled,
    "repeated": _repeated,
    "figures": _figures,
}


def _altered(figure: str) -> str:
    """Another figure of the same form: 24 → 79."""
    return "".join(
        str((int(digit) + 5) % 10 or 7) if digit.isascii() and digit.isdigit() else digit for digit in figure
    )


def _dressed(item: Any, content: Any) -> Any:
    """The content of an item in the form of another."""
    if isinstance(item, dict) and isinstance(content, dict):
        return {**content, **{name: item[name] for name in _KEPT if name in item}}
    return content


def _lists_changed(value: Any, change: Callable[[str, list[Any]], list[Any]]) -> Any:
    if not isinstance(value, dict):
        return None
    return {name: change(name, part) if isinstance(part, list) and part else part for name, part in value.items()}


def _texts_changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _texts_changed(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_texts_changed(part, change) for part in value]
    return value
