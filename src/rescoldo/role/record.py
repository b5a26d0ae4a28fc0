"""A record of a dataset, and values derived from it by its role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Record(dict[str, Any]):
    """A record of the dataset as in the file (unknown keys are kept), to be read by a role (Role.read). It is immutable
    by convention: changes are made to a copy.

    Attributes:
        line: its line in the file, from 1 (see data.records.read_lines).
    """

    line: int = 0

    def once(self, role: object, what: str, make: Callable[[], T]) -> T:
        """The value of `make` for this record and `role`, computed at the first call and cached: writing an answer as
        YAML takes as long as tokenizing it, and the checks, the comparison with the template and the tokenizer all need
        it."""
        kept: dict[str, tuple[object, Any]] = self.__dict__.setdefault("_made", {})
        if what not in kept or kept[what][0] is not role:
            kept[what] = (role, make())
        made: T = kept[what][1]
        return made
