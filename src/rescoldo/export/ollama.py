"""A Modelfile for Ollama: FROM, ADAPTER, the prompt template in Go's template language, sampling."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.data.tokenize import prompt_text
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.export.source import Source

_USER, _ANSWER, _AGAIN, _SYSTEM = "xqzuserzqx", "xqzanswerzqx", "xqzagainzqx", "xqzsystemzqx"
_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,79})?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?"
)


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around the parts of a conversation.

    Attributes:
        head: before the first question, where there is no system message.
        system: before and behind a system message, the latter up to the first question; None: the template has none.
        tail: behind a question, up to where the answer begins.
        answer: between `tail` and an answer that is already known; between, from its end to the next question. None
            where the template writes a conversation in no way that can be put together so.
    """

    head: str
    system: tuple[str, str] | None
    tail: str
    answer: tuple[str, str] | None


def read_turns(tokenizer: Any) -> Turns:
    """Find out what the model's chat template writes, by letting it write conversations.

    Raises:
        RescoldoError: it cannot write a single question.
    """
    bos = tokenizer.bos_token if (tokenizer("x")["input_ids"] or [None])[0] == tokenizer.bos_token_id else None

    def write(*messages: tuple[str, str]) -> str:
        text = prompt_text([{"role": role, "content": content} for role, content in messages], tokenizer) or ""
        return text.removeprefix(bos) if bos else text  # Ollama begins the sequence itself

    head, found, tail = write(("user", _USER)).partition(_USER)
    if not found:
        raise RescoldoError("the chat template does not write what the user says", fix="--to merged-gguf")
    answer = system = None
    try:
        text = write(("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN))
        parts = re.split(f"{_USER}|{_ANSWER}|{_AGAIN}", text)
        if len(parts) == 4 and (parts[0], parts[3]) == (head, tail) and parts[1].startswith(tail):
            answer = parts[1].removeprefix(tail), parts[2]
    except RescoldoError:
        pass  # one question is all that it takes
    try:
        parts = re.split(f"{_SYSTEM}|{_USER}", write(("system", _SYSTEM), ("user", _USER)))
        if len(parts) == 3 and parts[2] == tail:
            system = parts[0], parts[1]
    except RescoldoError:
        pass  # a template without system messages
    return Turns(head, system, tail, answer)


def go_template(turns: Turns) -> str:
    """The same as a template for Ollama. No newline or blank outside of what the model is to see."""
    head = _literal(turns.head)
    if turns.system:
        before, behind = map(_literal, turns.system)
        head = "{{ if .System }}" + before + "{{ .System }}" + behind + "{{ else }}" + head + "{{ end }}"
    tail = _literal(turns.tail)
    if turns.answer is None:
        return head + "{{ .Prompt }}" + tail
    opened, between = map(_literal, turns.answer)
    return (
        head
        + "{{ $asked := false }}{{ range .Messages }}"
        + '{{ if eq .Role "user" }}{{ if $asked }}'
        + between
        + "{{ end }}{{ $asked = true }}{{ .Content }}"
        + tail
        + '{{ else if eq .Role "assistant" }}'
        + opened
        + "{{ .Content }}{{ end }}{{ end }}"
    )


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


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
    template = go_template(read_turns(source.tokenizer))
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


def create_command(name: str, modelfile: Path) -> list[str]:
    """The command that makes the model in Ollama."""
    return ["ollama", "create", name, "-f", str(modelfile)]


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
