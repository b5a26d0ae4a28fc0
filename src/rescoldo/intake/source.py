"""What every kind of file is read as: rows with a place, of named values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Share = Callable[[], float]  # which share of the file has been read, 0..1


@dataclass
class Row:
    """One row, or one object.

    Attributes:
        number: of its line, or of its row in the sheet, from 1.
        where: as messages name it: "orders.xlsx, sheet 'Q3', row 7", "a.csv:7".
        values: by column; None where the row could not be read.
        faults: (column, what is wrong); of a row with faults nothing is written.
    """

    number: int
    where: str
    values: dict[str, Any] | None
    faults: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A file that can be read as rows, from the beginning as often as wanted.

    Attributes:
        kind: in words ("CSV table").
        notes: what was recognized about it, in words (encoding, separator, sheet, compression).
        tabular: whether its values are cells of a table: then lists and objects stand in them as texts.
        read: opens it: the rows, and which share of the file has been read.
    """

    path: Path
    kind: str
    notes: tuple[str, ...]
    tabular: bool
    read: Callable[[], AbstractContextManager[tuple[Iterator[Row], Share]]]
