"""Recognizing names of models on the Hugging Face Hub, and how to download one again."""

from __future__ import annotations

import re
from pathlib import Path

REFETCH = "fetch the model again: hf download ID --local-dir DIRECTORY"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".json")


def is_hub_id(spec: str) -> bool:
    """Whether `spec` means a model of the Hub ("org/name") and not a path: nothing with that name exists here, it has
    no file suffix, and its first half is not a directory."""
    path = Path(spec)
    return bool(
        _HUB_ID.fullmatch(spec) and not path.exists() and path.suffix not in _FILE_ENDINGS and not path.parent.is_dir()
    )
