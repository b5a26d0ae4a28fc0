"""Faults in records, and where they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar

from rescoldo.phrase import Phrase

LEVELS = ("error", "warning")
_KINDS = {
    dict: Phrase("an object"),
    list: Phrase("a list"),
    str: Phrase("text"),
    bool: Phrase("true or false"),
    int: Phrase("a number"),
    float: Phrase("a number"),
    type(None): Phrase("null"),
}


class Finding(NamedTuple):
    """A fault in one record, as a role's check returns it; the fields are explained in Fault."""

    field: str
    code: str
    what: str
    fixable: bool = False
    level: str = "error"


@dataclass(frozen=True)
class Fault:
    """A fault in a dataset file.

    Attributes:
        field: path inside the record ("requirements.constraints[0].id"); "" for the whole line.
        code: its kind in one word, for programs.
        what: a description for people.
        fixable: whether `rescoldo data fix` can fix it.
        level: "error" (training refuses the file, the audit fails) or "warning".
    """

    file: str
    line: int
    field: str
    code: str
    what: str
    fixable: bool = False
    level: str = "error"

    @property
    def where(self) -> str:
        """file:line, field."""
        return f"{self.file}:{self.line}" + (f", {self.field}" if self.field else "")


Found = TypeVar("Found", Finding, Fault)


def errors(found: Iterable[Found]) -> list[Found]:
    """Those of which a record is refused; the others are warnings."""
    return [one for one in found if one.level == "error"]


def kind(value: Any) -> str:
    """The type of a JSON value, as text."""
    return _KINDS.get(type(value)) or type(value).__name__


def closest(name: str, known: Iterable[str]) -> str:
    """The name in `known` that `name` probably misspells; "" if none is similar."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.7)), "")


def text_findings(holder: dict[str, Any], name: str, path: str | None = None) -> list[Finding]:
    """The fault if holder[name] is not a non-empty text; [] if it is. `path` is its place in the record."""
    value = holder.get(name)
    where = name if path is None else path
    if name not in holder:
        return [Finding(where, "missing", "is missing")]
    if not isinstance(value, str):
        return [Finding(where, "type", f"is {kind(value)}: expected text")]
    return [] if value.strip() else [Finding(where, "empty", "is empty")]


def findings_of(result: Any) -> list[Finding]:
    """Validate what a role's own check returned.

    Raises:
        ValueError: it is not a list of (field, code, what), optionally with Finding's other two fields.
    """
    wanted = "expected a list of (field, code, what)"
    if not isinstance(result, list | tuple):
        raise ValueError(f"returned {_returned(result)}: {wanted}")
    for item in result:
        fits = (
            isinstance(item, list | tuple) and 3 <= len(item) <= 5 and all(isinstance(text, str) for text in item[:3])
        )
        if not fits:
            raise ValueError(f"returned a list with {repr(item)[:60]} in it: {wanted}")
    found = [Finding(*item) for item in result]
    odd = next((finding.level for finding in found if finding.level not in LEVELS), None)
    if odd is not None:
        raise ValueError(f"returned the level {repr(odd)[:40]}: expected one of {', '.join(LEVELS)}")
    return found


def mended_of(result: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Validate what a role's own mend returned: the corrected record, and (field, what) of each change.

    Raises:
        ValueError: it is something else.
    """
    wanted = "expected (the corrected record, a list of (field, what))"
    if not isinstance(result, list | tuple) or len(result) != 2:
        raise ValueError(f"returned {_returned(result)}: {wanted}")
    record, changes = result
    if not isinstance(record, dict) or not isinstance(changes, list | tuple):
        raise ValueError(f"returned ({_returned(record)}, {_returned(changes)}): {wanted}")
    for change in changes:
        if not isinstance(change, list | tuple) or [type(part) for part in change] != [str, str]:
            raise ValueError(f"returned the change {repr(change)[:60]}: {wanted}")
    return record, [(field, what) for field, what in changes]


def _returned(value: Any) -> str:
    return "None" if value is None else kind(value)
