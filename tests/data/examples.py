"""Records for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PREFIXES = {"functional_requirements": "FR", "non_functional_requirements": "NFR", "constraints": "C"}
NAMES = "amber birch cedar delta ember flint grove heron indigo jasper kelp lotus maple nickel onyx pearl quartz"
WORDS = NAMES.split()


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A record without faults; records of different numbers share no phrase. `changes` go into its requirements."""
    word = WORDS[number % len(WORDS)] + str(number)
    requirements: dict[str, Any] = {
        "title": f"Product for {word}",
        "description": f"A {word} description. " + f"{word} {number} " * 20,
    }
    for name, prefix in PREFIXES.items():
        requirements[name] = [
            {"id": f"{prefix}{i:03d}", "description": f"{word} {prefix} {i} {word}.", "priority": "High"}
            for i in (1, 2, 3)
        ]
    requirements.update(changes)
    return {"concept": f"{word} wants a {word} system that {word}s all {word}", "requirements": requirements}


def write(path: Path, *records: Any) -> Path:
    """Write records (or raw lines: str, bytes) as JSON Lines."""
    lines = [
        one
        if isinstance(one, bytes)
        else (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)).encode()
        for one in records
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def items(prefix: str, *ids: Any) -> list[dict[str, Any]]:
    """Items with these IDs; None leaves the ID out."""
    found = []
    for i, identifier in enumerate(ids):
        entry = {"description": f"{prefix} thing {i}", "priority": "Low"}
        found.append(entry if identifier is None else {"id": identifier, **entry})
    return found
