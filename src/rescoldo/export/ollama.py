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
    """The Modelfile.

    Args:
        files: "model" and "adapter": what FROM and ADAPTER say; no "adapter" where the model holds it already.
        document: prompt.json's content.

    Raises:
        RescoldoError: the chat template cannot be put into a Modelfile.
    """
    sampling, example = document["sampling"], document["example"]
    room = len(example["tokens"]) * 2 + sampling["max_new_tokens"]
    template = go_template(source.tokenizer)
    if '"""' in template:
        raise RescoldoError('the chat template writes """, which a Modelfile cannot hold', fix="--to merged-gguf")
    parameters: dict[str, Any] = {
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "repeat_penalty": 1.0,  # Ollama's own default would punish the keys and IDs that have to come again
        "seed": sampling["seed"],
        "num_predict": sampling["max_new_tokens"],
        "num_ctx": min(-(-room // 512) * 512, source.base.config.max_positions),
    }
    lines = [
        f"# Made by rescoldo from {source.run.name}. PROMPT.md says how to call it.",
        f"FROM {files['model']}",
        *([f"ADAPTER {files['adapter']}"] if "adapter" in files else []),
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER {key} {value}" for key, value in parameters.items()),
        *(f'PARAMETER stop "{text}"' for text in document["stop"]),
    ]
    return "\n".join(lines) + "\n"


def check_name(name: str) -> str:
    """`name` if Ollama would take it for a model.

    Raises:
        RescoldoError: it would not.
    """
    if not _NAME.fullmatch(name):
        raise RescoldoError(
            f"{name!r} is no name for a model of Ollama's",
            where="--name",
            fix="--name and letters, digits, . _ -, as in --name mistral-ba",
        )
    return name


def create_command(name: str, directory: Path) -> list[str]:
    """The command that makes the model in Ollama, of an export in `directory`."""
    return ["ollama", "create", name, "-f", str(directory / "Modelfile")]


def run_create(command: list[str]) -> bool:
    """Run it where Ollama is installed; False where it is not. Its own output goes to standard error.

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
