"""What is wrong with a record, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Finding(NamedTuple):
    """Something wrong in one record, as a role's check returns it; Fault has the meaning of the fields."""

    field: str
    code: str
    what: str
    fixable: bool = False
    level: str = "error"


@dataclass(frozen=True)
class Fault:
    """Something wrong in a dataset file.

    Attributes:
        field: path inside the record ("requirements.constraints[0].id"), "" for the line as a whole.
        code: its kind in a word, for programs.
        what: in words.
        fixable: `rescoldo data fix` mends it.
        level: "error" (training refuses the file, or the audit fails) or "warning" (worth a look).
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


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def text_findings(holder: dict[str, Any], name: str, path: str | None = None) -> list[Finding]:
    """Why holder[name] is not a text with something in it; [] if it is. `path` is its place in the record."""
    value = holder.get(name)
    where = name if path is None else path
    if name not in holder:
        return [Finding(where, "missing", "is missing")]
    if not isinstance(value, str):
        return [Finding(where, "type", f"is {kind(value)}, text is wanted")]
    return [] if value.strip() else [Finding(where, "empty", "is empty")]
