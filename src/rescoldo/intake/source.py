"""The common form of all kinds of files: rows of named values, each with its place in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Share = Callable[[], float]  # the fraction of the file read so far, 0..1


@dataclass
class Row:
    """One row, or one object.

    Attributes:
        number: its line, or its row in the sheet, from 1.
        where: its name in messages: "orders.xlsx, sheet 'Q3', row 7", "a.csv:7".
        values: by column; None if the row could not be read.
        faults: (column, what is wrong); a row with faults is not written.
    """

    number: int
    where: str
    values: dict[str, Any] | None
    faults: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A file that can be read as rows, repeatedly and from its beginning.

    Attributes:
        kind: for people ("CSV table").
        notes: what was detected (encoding, separator, sheet, compression), for people.
        tabular: whether the values are cells of a table, where lists and objects are written as text.
        read: opens the file; yields the rows, and a function for the fraction of the file read so far.
    """

    path: Path
    kind: str
    notes: tuple[str, ...]
    tabular: bool
    read: Callable[[], AbstractContextManager[tuple[Iterator[Row], Share]]]
