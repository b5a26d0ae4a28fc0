"""A Modelfile for Ollama: FROM, ADAPTER, the prompt template, sampling."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.export.go_template import go_template
from rescoldo.export.source import Source

_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,79})?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?"
)


def modelfile(source: Source, files: dict[str, str], document: dict[str, Any]) -> str:
    """The content of the Modelfile.

    Args:
        files: the files for FROM ("model") and ADAPTER ("adapter"); without "adapter" if it is merged into the model.
        document: the content of prompt.json.

    Raises:
        RescoldoError: the chat template cannot be written in a Modelfile.
    """
    sampling, example = document["sampling"], document["example"]
    room = len(example["tokens"]) * 2 + sampling["max_new_tokens"]
    template = go_template(source.tokenizer)
    if '"""' in template:
        raise RescoldoError('the chat template writes """, which a Modelfile cannot hold', fix="--to merged-gguf")
    parameters: dict[str, Any] = {
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "repeat_penalty": 1.0,  # Ollama's default would penalize keys and IDs, which have to be repeated
        "seed": sampling["seed"],
        "num_predict": sampling["max_new_tokens"],
        "num_ctx": min(-(-room // 512) * 512, source.base.config.max_positions),
    }
    lines = [
        f"# Made by rescoldo from {source.run.name}. PROMPT.md explains how to call it.",
        f"FROM {files['model']}",
        *([f"ADAPTER {files['adapter']}"] if "adapter" in files else []),
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER {key} {value}" for key, value in parameters.items()),
        *(f'PARAMETER stop "{text}"' for text in document["stop"]),
    ]
    return "\n".join(lines) + "\n"


def check_name(name: str) -> str:
    """`name`, if it is a valid name for a model in Ollama.

    Raises:
        RescoldoError: it is invalid.
    """
    if not _NAME.fullmatch(name):
        raise RescoldoError(
            f"invalid name for a model in Ollama: {name!r}",
            where="--name",
            fix="--name and letters, digits, . _ -, as in --name mistral-ba",
        )
    return name


def create_command(name: str, directory: Path) -> list[str]:
    """The command that creates the model in Ollama from an export in `directory`."""
    return ["ollama", "create", name, "-f", str(directory / "Modelfile")]


def run_create(command: list[str]) -> bool:
    """Run it if Ollama is installed, else return False. Its output goes to standard error.

    Raises:
        RescoldoError: Ollama failed.
    """
    if shutil.which(command[0]) is None:
        return False
    code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=2).returncode
    if code:
        raise RescoldoError(
            f"ollama create ended with exit code {code}; the export itself is complete",
            fix=f"is its server running (ollama serve)? Then: {shlex.join(command)}",
            exit_code=EXIT_FAILURE,
        )
    return True
