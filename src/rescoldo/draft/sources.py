"""The sources of drafts: a list of inputs, or documents cut into pieces."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.extras import missing
from rescoldo.intake.encoding import as_text, find_encoding
from rescoldo.intake.importer import LOOKED_AT
from rescoldo.intake.open import open_source
from rescoldo.intake.unpack import FREE_BYTES, MAX_RATIO, packed
from rescoldo.role import Role
from rescoldo.words import words

MAX_CHARACTERS = 20_000_000  # of a document's text
MAX_PAGES = 5000
CHUNK_WORDS = 300
DOCUMENTS = (".txt", ".md", ".markdown", ".docx", ".pdf")
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Asked:
    """An input to answer, or a piece of a document to find inputs in.

    Attributes:
        record: the known fields of the record; None for a piece of a document.
        extract: the piece's text; "" for an input.
        source: the file's name.
        place: where in the file, for people ("line 3", "piece 2, page 5").
    """

    record: dict[str, Any] | None
    extract: str
    source: str
    place: str


def read_inputs(path: Path, role: Role, column: str = "") -> list[Asked]:
    """The inputs in a file: the lines of a text, or a column of any file that `data import` reads.

    Args:
        column: the column's name; "" for the one named like the role's input, or the only one.

    Raises:
        RescoldoError: the file cannot be read, or has no such column.
    """
    if path.suffix.lower() in (".txt", ".md", "") and not column:
        text = _plain_text(path)
        found = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        return [Asked({role.input: line}, "", path.name, f"line {number}") for number, line in found]
    source = open_source(str(path))
    with source.read() as (rows, _):
        found_rows = list(rows)
    bad = next((row for row in found_rows if row.values is None or row.faults), None)
    if bad is not None:
        raise RescoldoError(bad.faults[0][1], where=bad.where, fix="fix that row")
    columns = list(dict.fromkeys(name for row in found_rows[:LOOKED_AT] for name in row.values or ()))
    conversation = role.spec.conversational and "messages" in columns and not column
    chosen = column or next((name for name in columns if name.lower() == role.input.lower()), "")
    if not chosen and len(columns) == 1:
        chosen = columns[0]
    if not conversation and (not chosen or chosen not in columns):
        raise RescoldoError(
            f"has no column {chosen or role.input!r}; its columns: {', '.join(columns)[:300]}", where=str(path),
            fix="say which one holds the inputs: --column NAME",
        )  # fmt: skip
    asked = []
    for row in found_rows:
        values = row.values or {}
        if conversation:
            asked.append(Asked({"messages": values.get("messages")}, "", path.name, f"row {row.number}"))
        elif values.get(chosen) not in (None, ""):
            others = {} if role.spec.conversational else values
            record = {k: v for k, v in others.items() if k not in (chosen, role.spec.answer) and v not in (None, "")}
            record[role.input] = values[chosen] if isinstance(values[chosen], str) else str(values[chosen])
            asked.append(Asked(record, "", path.name, f"row {row.number}"))
    return asked


def read_documents(paths: Sequence[Path], size: int = CHUNK_WORDS) -> list[Asked]:
    """Documents cut into pieces of about `size` words each.

    Raises:
        RescoldoError: a document cannot be read, or has no text.
    """
    asked = []
    for path in paths:
        pieces = list(_pieces(_sections(path), size))
        if not pieces:
            raise RescoldoError("has no text (is it scanned?)", where=str(path), fix="recognize its text first (OCR)")
        asked += [Asked(None, text, path.name, place) for place, text in pieces]
    return asked


def _sections(path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of the units in which a document is read: the pages of a PDF, otherwise the whole document."""
    kind = path.suffix.lower()
    if kind not in DOCUMENTS:
        raise RescoldoError(
            f"is not a supported document ({kind or 'no suffix'})", where=str(path), fix=" ".join(DOCUMENTS)
        )
    if not path.is_file():
        raise RescoldoError("there is no such file", where=str(path), fix="check the path")
    if kind == ".docx":
        yield "", _docx(path)
    elif kind == ".pdf":
        yield from _pdf(path)
    else:
        yield "", _plain_text(path)


def _plain_text(path: Path) -> str:
    content = packed(path)
    encoding = find_encoding(content.open, str(path))
    with as_text(content.open, encoding) as (text, _):
        found = text.read(MAX_CHARACTERS + 1)
    if len(found) > MAX_CHARACTERS:
        raise RescoldoError(f"has more than {MAX_CHARACTERS:,} characters", where=str(path), fix="split it")
    return found.replace("\r\n", "\n")


def _docx(path: Path) -> str:
    try:
        import docx
    except ImportError:
        raise missing("documents", "Word documents are read by the package python-docx", where=str(path)) from None
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            whole, held = sum(one.file_size for one in parts), sum(one.compress_size for one in parts)
        if whole > FREE_BYTES and whole > MAX_RATIO * max(1, held):
            raise RescoldoError("is too large when unpacked", where=str(path), fix="save it as text")
        document = docx.Document(str(path))
        lines = []
        for block in document.iter_inner_content():
            if hasattr(block, "rows"):  # a table: one line per row
                lines += [" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows] + [""]
            else:
                lines += [block.text, ""]
    except RescoldoError:
        raise
    except Exception as error:  # python-docx, lxml and zipfile raise many types
        raise _damaged(path, error) from None
    return "\n".join(lines)


def _pdf(path: Path) -> Iterator[tuple[str, str]]:
    try:
        import pypdf
    except ImportError:
        raise missing("documents", "PDF files are read by the package pypdf", where=str(path)) from None
    import logging

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise RescoldoError("is encrypted with a password", where=str(path), fix="save it without one")
        for number, page in enumerate(reader.pages, start=1):
            if number > MAX_PAGES:
                raise RescoldoError(f"has more than {MAX_PAGES} pages", where=str(path), fix="split it")
            yield f"page {number}", page.extract_text() or ""
    except RescoldoError:
        raise
    except Exception as error:  # pypdf raises many types
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RescoldoError:
    said = " ".join(str(error).split())[:120]
    return RescoldoError(
        f"cannot be read ({type(error).__name__}: {said})", where=str(path), fix="save it anew, or as text"
    )


def _pieces(sections: Iterator[tuple[str, str]], size: int) -> Iterator[tuple[str, str]]:
    """(place, text) of about `size` words: whole paragraphs; longer paragraphs are cut between sentences."""
    held: list[str] = []
    held_words, number, page = 0, 0, ""
    for where, text in sections:
        for paragraph in _paragraphs(text, size):
            count = len(words(paragraph))
            if held and held_words + count > size:
                number += 1
                yield _place(number, page), "\n\n".join(held)
                held, held_words = [], 0
            if not held:
                page = where
            held.append(paragraph)
            held_words += count
    if held_words:
        yield _place(number + 1, page), "\n\n".join(held)


def _place(number: int, page: str) -> str:
    return f"piece {number}, {page}" if page else f"piece {number}"


def _paragraphs(text: str, size: int) -> Iterator[str]:
    for paragraph in _PARAGRAPH.split(text):
        stripped = paragraph.strip()
        if not words(stripped):
            continue
        if len(words(stripped)) <= size:
            yield stripped
            continue
        part: list[str] = []
        for sentence in re.split(r"(?<=[.!?…])\s+|\n", stripped):
            for piece in _cut(sentence, size):
                if part and len(words(" ".join([*part, piece]))) > size:
                    yield " ".join(part)
                    part = []
                part.append(piece)
        if part:
            yield " ".join(part)


def _cut(sentence: str, size: int) -> Iterator[str]:
    tokens = sentence.split()
    for begin in range(0, len(tokens), size):
        yield " ".join(tokens[begin : begin + size])
