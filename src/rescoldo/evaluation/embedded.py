"""A document inside an answer: text before or after it makes the answer unreadable, and its score 0.

The score stays so: who reads answers by program cannot read them either. But a model that wraps perfect documents in a
sentence lacks something else than one that cannot write them, so the reader is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rescoldo.models.predictor import Prediction
from rescoldo.role import Role

MAX_TEXT = 100_000  # characters of an answer that are looked at
MAX_CANDIDATES = 12
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})", re.MULTILINE)
_KEY = re.compile(r"^(?=[A-Za-z_][\w-]*:(?:\s|$))", re.MULTILINE)
_RULE = re.compile(r"^---[ \t]*\n", re.MULTILINE)  # around front matter
_BLANK = re.compile(r"\n[ \t]*\n")


def document_score(role: Role, prediction: Prediction, record: dict[str, Any]) -> float | None:
    """The best score of a document inside an answer that is none as a whole; None where there is none, or the answer
    can be read as it is.
    """
    if role.schema is None or prediction.error or prediction.fields is not None or role.reads(prediction.text):
        return None
    found = [text for text in documents_within(prediction.text) if role.reads(text)]
    return max((role.score(text, record).total for text in found), default=None)


def documents_within(text: str) -> Iterator[str]:
    """The parts of a text that may be its document: fenced blocks; from the first brace to the last; front matter;
    from the first line that begins with a key to the end, or to an earlier empty line. At most MAX_CANDIDATES.
    """
    for count, candidate in enumerate(_candidates(text[:MAX_TEXT])):
        if count == MAX_CANDIDATES:
            return
        yield candidate


def _candidates(text: str) -> Iterator[str]:
    fences = list(_FENCE.finditer(text))
    place = 0
    while place < len(fences):
        opening = fences[place]
        start = text.find("\n", opening.end()) + 1
        closing = next((i for i in range(place + 1, len(fences)) if fences[i][1] == opening[1]), None)
        if closing is None or not start:
            break
        yield text[start : fences[closing].start()]
        place = closing + 1
    for opening_brace, closing_brace in (("{", "}"), ("[", "]")):
        start, end = text.find(opening_brace), text.rfind(closing_brace)
        if 0 <= start < end:
            yield text[start : end + 1]
    parts = _RULE.split(text)
    if len(parts) > 1:
        yield from parts[:3]
    key = _KEY.search(text)
    if key and not fences:
        rest = text[key.start() :]
        yield rest
        ends = [match.start() for match in _BLANK.finditer(rest)]
        for end in reversed(ends[-5:]):
            yield rest[:end]
