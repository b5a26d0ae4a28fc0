"""The output of `rescoldo role new`: a small working role, to be adapted line by line."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rescoldo.errors import RescoldoError
from rescoldo.files import write_text
from rescoldo.role.load import role_names
from rescoldo.role.spec import NAME, NAME_IN_WORDS

ROLE = """\
# A role. docs/roles.md explains every field. `rescoldo role check .` checks it.
name: NAME
description: From a list of changes to release notes

# The two fields of a record (one line of a dataset, JSON): the input, and the answer to learn.
input: changes
answer: notes

# The prompt. {{ changes }} is the record's field; other fields can be used in the same way.
# Text that is the same for all records comes first, because it is computed only once.
prompt: |-
  You write release notes for users. Answer with one YAML mapping and nothing else:

  headline: what is new, in up to 80 characters
  breaking: yes or no
  items:
  - kind: new
    text: one change as a user would say it

  Rules: kind is new, changed or fixed. Leave out what users do not notice.

  Changes: {{ changes | trim }}

# How the answer is written: yaml, json (both need a schema) or text (without a schema).
serialization: yaml

# JSON Schema of the answer. Its properties are learned in this order; others are left out.
# Numbers and lists in YAML are read as the schema says. `x-unique: id` would require unique IDs in a list.
schema:
  type: object
  required: [headline, breaking, items]
  properties:
    headline: {type: string, minLength: 10, maxLength: 80}
    breaking: {enum: ["yes", "no"]}
    items:
      type: array
      minItems: 1
      items:
        type: object
        required: [kind, text]
        properties:
          kind: {enum: [new, changed, fixed]}
          text: {type: string, minLength: 10}

# Named metrics: fields (credit for each field that satisfies its schema), valid, exact_match, rouge_l, perplexity.
# Or your own function: file.py:function in this folder, or package.module:function.
metric: fields

# How answers are sampled by default.
sampling: {temperature: 0, max_new_tokens: 512}

# The criteria of a judge that compares two answers (compare --judge).
rubric: |-
  The better notes name every change that users notice and no other, in words that users understand, and nothing twice.

# A few records: the check scores their own answers, which must get full marks.
samples: samples.jsonl
"""

_SAMPLES = [
    {
        "changes": "fix crash when CSV has no header; add dark theme; bump eslint",
        "notes": {
            "headline": "Dark theme, and CSV files without a header",
            "breaking": "no",
            "items": [
                {"kind": "new", "text": "There is a dark theme; it follows your system's setting."},
                {"kind": "fixed", "text": "Opening a CSV file without a header no longer crashes."},
            ],
        },
    },
    {
        "changes": "drop Python 3.9; rename --out to --output; docs typos",
        "notes": {
            "headline": "Python 3.10 is needed, and --out is now --output",
            "breaking": "yes",
            "items": [
                {"kind": "changed", "text": "Python 3.9 is no longer supported: use 3.10 or newer."},
                {"kind": "changed", "text": "The option --out is called --output; scripts have to be changed."},
            ],
        },
    },
]
SAMPLES = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in _SAMPLES)


def write_skeleton(name: str, folder: Path) -> None:
    """Write a commented role that passes the check: folder/role.yaml and folder/samples.jsonl.

    Raises:
        RescoldoError: the name is invalid or a built-in role's, or the folder exists already.
    """
    if not NAME.fullmatch(name):
        raise RescoldoError(f"{name[:60]!r} is not a valid name for a role", where="NAME", fix=NAME_IN_WORDS)
    if name in role_names():
        raise RescoldoError(
            f"{name!r} is a role that comes with the program",
            where="NAME",
            fix="choose another name",
        )
    if os.path.lexists(folder):
        raise RescoldoError("exists already and is not overwritten", where=str(folder), fix="-o ANOTHER_FOLDER")
    try:
        write_text(folder / "samples.jsonl", SAMPLES)
        write_text(folder / "role.yaml", ROLE.replace("NAME", name))
    except OSError as error:
        raise RescoldoError(f"cannot be written: {error.strerror or error}", where=str(folder)) from None
