"""A record of a dataset, and what its role has made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Record(dict[str, Any]):
    """A record of the dataset as it stands in the file (unknown keys kept), read by its role (Role.read). It is not
    changed any more: a changed one is a copy.

    Attributes:
        line: its line in the file, from 1 (see data.records.read_lines).
    """

    line: int = 0

    def once(self, role: object, what: str, make: Callable[[], T]) -> T:
        """What `role` makes of this record, made at the first call and kept: writing an answer as YAML takes as long
        as tokenizing it, and the checks, the template's comparison and the tokenizer all ask for it."""
        kept: dict[str, tuple[object, Any]] = self.__dict__.setdefault("_made", {})
        if what not in kept or kept[what][0] is not role:
            kept[what] = (role, make())
        made: T = kept[what][1]
        return made
