"""How answers are written as text, one row each. To add one: a row, its name in RoleSpec.serialization, and, if it has
a `load`, a grammar in role/grammar.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rescoldo.phrase import Phrase
from rescoldo.role.prompt import dump_json, dump_yaml
from rescoldo.role.yaml_text import MAX_CHARACTERS, YamlRefusedError, parse_yaml, problem


@dataclass(frozen=True)
class Serialization:
    """Conversion between values and texts.

    Attributes:
        title: its name in messages.
        dump: the text of a value.
        load: the value of a text; raises YamlRefusedError for an invalid one. None if any text is a valid answer, so
            that there is no schema.
    """

    title: str
    dump: Callable[[Any], str]
    load: Callable[[str], Any] | None = None


def _load_json(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise YamlRefusedError(Phrase("longer than {characters} characters", characters=MAX_CHARACTERS))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = Phrase(
            "{what}: line {line} column {column} (char {place})",
            what=problem(error.msg), line=error.lineno, column=error.colno, place=error.pos,
        )  # fmt: skip
        raise YamlRefusedError(what, error.lineno) from None
    except ValueError as error:  # an integer too long to convert
        raise YamlRefusedError(problem(str(error))) from None


SERIALIZATIONS: Mapping[str, Serialization] = {
    "yaml": Serialization("YAML", dump_yaml, parse_yaml),
    "json": Serialization("JSON", dump_json, _load_json),
    "text": Serialization("text", str),
}
