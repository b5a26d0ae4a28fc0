"""How answers are written as text, one row each. To add one: a row, its name in RoleSpec.serialization, and, if it has
a `load`, a grammar in role/grammar.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rescoldo.role.prompt import dump_json, dump_yaml
from rescoldo.role.yaml_text import MAX_CHARACTERS, YamlRefusedError, parse_yaml


@dataclass(frozen=True)
class Serialization:
    """Conversion between values and texts.

    Attributes:
        title: its name in messages.
        dump: the text of a value.
        load: the value of a text; raises ValueError for an invalid one (the error's `line` or `lineno` says where).
            None if any text is a valid answer, so that there is no schema.
    """

    title: str
    dump: Callable[[Any], str]
    load: Callable[[str], Any] | None = None


def _load_json(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise YamlRefusedError(f"longer than {MAX_CHARACTERS} characters")
    return json.loads(text)


SERIALIZATIONS: Mapping[str, Serialization] = {
    "yaml": Serialization("YAML", dump_yaml, parse_yaml),
    "json": Serialization("JSON", dump_json, _load_json),
    "text": Serialization("text", str),
}
