"""Plain text: .txt and .md files of one document each, and JSON Lines of `text` rows with one document a line.

All tokens are learned. Documents, each closed by the tokenizer's EOS, are packed one after the other into windows of
the full length; within a window no document sees another (Example.documents). A document that does not fit continues in
the next window, whose first token repeats the last token of this one, so that every token is predicted once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rescoldo.data.records import MAX_ARRAY_BYTES, is_prose, read_lines
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError
from rescoldo.files import quote
from rescoldo.role import Fault, Role, keys
from rescoldo.role.conversation import FORMATS, OTHERS
from rescoldo.role.fault import Finding, text_findings
from rescoldo.role.record import Record

KEY = "text"
LIKENESS = 2000  # characters of a document that are compared when looking for near-duplicates
SHOWN = 5


class Document(Record):
    """A document of plain text; its key is `text`."""


_NOT_TEXT = [name for name in OTHERS if name != KEY]


def is_text(path: Path, role: Role) -> bool:
    """Whether a file is plain text, by its name or because its first line is a `text` row and not one of the role's."""
    if is_prose(path):
        return True
    first = next(read_lines(path), None)
    value = first.value if first is not None else None
    if value is None or KEY not in value or any(name in value for name in (*FORMATS, *_NOT_TEXT)):
        return False
    own = {role.input, role.spec.answer} if not role.spec.conversational else set()
    return not own & set(value)


def read_documents(path: Path) -> list[Document]:
    """The documents of a plain text file, as records with `text`.

    Raises:
        RescoldoError: the file cannot be read, is not UTF-8, is empty, or a row holds more than a text.
    """
    if is_prose(path):
        whole = Document({KEY: _whole(path)})
        whole.line = 1
        return [whole]
    records: list[Document] = []
    faults: list[Fault] = []
    for record, found in text_rows(path):
        records += [record] if record is not None else []
        faults += found
    if faults:
        first, *others = faults
        more = f"; also {', '.join(f'line {fault.line}' for fault in others[:SHOWN])}" if others else ""
        more += f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        what = "has no `text`, unlike the file's first line" if first.code == "missing" else first.what
        raise RescoldoError(what + more, where=first.where, fix='one document a line: {"text": …}')
    if not records:
        raise RescoldoError("holds no documents", where=str(path), fix='one document a line: {"text": …}')
    return records


def text_rows(path: Path) -> Iterator[tuple[Document | None, list[Fault]]]:
    """Each line of a file of `text` rows: its record, or None and its faults."""
    for line in read_lines(path):
        found = list(line.faults)
        if line.value is not None:
            findings = text_findings(line.value, KEY) or keys.findings(line.value, (KEY,)) or _labels(line.value)
            findings = findings or keys.unreviewed(line.value)
            found += [Fault(str(path), line.number, *finding) for finding in findings]
        record = Document(line.value) if line.value is not None and not found else None
        if record is not None:
            record.line = line.number
        yield record, found


def _labels(row: dict[str, Any]) -> list[Finding]:
    """Fields of a row that describe its text and are not learned."""
    return [
        Finding(
            key,
            "meaning",
            "is a label of the text: as an answer to learn it belongs under `completion`, the text under `prompt`",
        )
        for key in keys.JUDGED
        if row.get(key) is not None
    ]


def _whole(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_ARRAY_BYTES:
            fix = "split it: each file is one document"
            raise RescoldoError(f"a text of more than {MAX_ARRAY_BYTES >> 30} GiB", where=str(path), fix=fix)
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RescoldoError("there is no such file", where=str(path), fix="check the path") from None
    except OSError as error:
        raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except UnicodeDecodeError as error:
        made = quote(path.with_name(f"{path.stem}_utf8{path.suffix}"))
        raise RescoldoError(
            f"is not UTF-8 text (byte {error.start + 1})",
            where=str(path),
            fix=f"iconv -f UTF-16 -t UTF-8 {quote(path)} > {made}; or -f ISO-8859-1, as it was written",
        ) from None
    if "\0" in text:
        raise RescoldoError("is not a text file: it holds null characters", where=str(path), fix="pass text in UTF-8")
    if not text.strip():
        raise RescoldoError("is empty", where=str(path), fix="pass a file with text in it")
    return text


def text_windows(records: Sequence[Document], tokenizer: Any, length: int) -> list[Example]:
    """The documents packed into windows of at most `length` tokens."""
    return list(pack((document_ids(record[KEY], tokenizer) for record in records), length))


def document_ids(text: str, tokenizer: Any) -> list[int]:
    """A document's tokens: with the tokenizer's beginning-of-sequence token, if it writes one, and EOS at the end."""
    ids = [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, int(tokenizer.eos_token_id)]


def pack(documents: Iterator[list[int]] | Sequence[list[int]], length: int) -> Iterator[Example]:
    """Documents packed one after the other into windows of `length` tokens; only the last window is shorter, and one
    that would end with a document's first token."""
    tokens: list[int] = []
    starts: list[int] = []
    for ids in documents:
        at = 0
        while len(ids) - at >= 2:
            if length - len(tokens) < 2:
                yield _window(tokens, starts)
                tokens, starts = [], []
            room = length - len(tokens)
            starts += [len(tokens)] if tokens else []
            tokens += ids[at : at + room]
            at += room - 1
    if tokens:
        yield _window(tokens, starts)


def _window(tokens: list[int], starts: list[int]) -> Example:
    first = set(starts)
    weights = tuple(float(place not in first) for place in range(1, len(tokens))) if starts else None
    return Example(tuple(tokens), 1, weights, tuple(starts))


def chosen(windows: Sequence[Example], share: float | None, other_tokens: int) -> list[int]:
    """Indices of the windows that make up `share` of all tokens, given `other_tokens` tokens of other data; all windows
    if share is None or there are too few. The order depends only on the number of windows."""
    order = sorted(range(len(windows)), key=lambda i: hashlib.sha256(f"text {i}".encode()).digest())
    if share is None:
        return list(range(len(windows)))
    wanted, taken, tokens = share / (1 - share) * other_tokens, [], 0
    for i in order:
        if tokens >= wanted:
            break
        taken.append(i)
        tokens += len(windows[i].tokens)
    return sorted(taken)
