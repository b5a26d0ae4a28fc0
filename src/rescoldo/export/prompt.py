"""How to call an exported model with the prompt it was trained on: prompt.json and PROMPT.md."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rescoldo.base.chat_templates import plain_note
from rescoldo.data import read_records
from rescoldo.data.tokenize import prompt_ids, prompt_text, stop_ids
from rescoldo.errors import RescoldoError
from rescoldo.export.source import Source
from rescoldo.files import write_json, write_text
from rescoldo.role import Role

_OWN = "the model's own chat template"
_PLAIN = "a plain chat template, as the model has none of its own"
_EXAMPLE = "A tool library where neighbours lend each other tools"


def placeholder(role: Role) -> str:
    """The placeholder for a record's input in the messages: {concept} for ba."""
    return "{" + role.input + "}"


def question(role: Role, text: str) -> list[dict[str, str]]:
    """The messages with the input `text`: the role's prompt, or the text alone if the prompt needs more fields."""
    try:
        return role.messages({role.input: text})
    except RescoldoError:
        return [{"role": "user", "content": text}]


def example(source: Source) -> tuple[str, list[dict[str, str]]]:
    """Input and messages of the first validation record of the run if its file still exists, else of a built-in
    example."""
    path, role = source.info.get("val_dataset"), source.role
    try:
        records = read_records(Path(path), role, answers=False) if isinstance(path, str) and path else []
    except RescoldoError:
        records = []
    return (role.key(records[0]), role.messages(records[0])) if records else (_EXAMPLE, question(role, _EXAMPLE))


def prompt_document(source: Source) -> dict[str, Any]:
    """The content of prompt.json.

    Returns:
        role; template: the chat template's origin, for people; input: the placeholder in the messages; messages;
        sampling as in evaluation; stop (the texts of the tokens that end an answer) and stop_ids; example: input,
        messages, rendered (the prompt as rendered by the chat template) and tokens (its ids); begins_with_bos: whether
        the rendered text includes the beginning-of-sequence token, so that it must not be added again.
    """
    tokenizer, role = source.tokenizer, source.role
    asked, messages = example(source)
    rendered = prompt_text(messages, tokenizer)
    ends = sorted(stop_ids(tokenizer))
    return {
        "role": role.name,
        "base_model": source.base.spec,
        "template": _PLAIN if plain_note(tokenizer) else _OWN,
        "input": placeholder(role),
        "messages": question(role, placeholder(role)),
        "sampling": asdict(role.sampling),
        "stop": [tokenizer.convert_ids_to_tokens(index) for index in ends],
        "stop_ids": ends,
        "begins_with_bos": bool(tokenizer.bos_token and rendered and rendered.startswith(tokenizer.bos_token)),
        "example": {
            "input": asked,
            "messages": messages,
            "rendered": rendered,
            "tokens": prompt_ids(messages, tokenizer),
        },
    }


def write_prompt(directory: Path, document: dict[str, Any], calls: list[str]) -> None:
    """Write prompt.json and, for people, PROMPT.md with the commands in `calls`."""
    write_json(directory / "prompt.json", document)
    shown, sampling = document["example"], document["sampling"]
    stops = ", ".join(f"`{text}`" for text in document["stop"])
    once = "the beginning-of-sequence token is part of it: it must not be added again"
    lines = [
        "# How to call this model",
        "",
        f"It was trained for the role `{document['role']}` on `{document['base_model']}`. It answers well if it gets",
        f"the prompt that it was trained on, through {document['template']}. In this directory:",
        "",
        *[part for call in calls for part in ("```sh", call, "```", "")],
        f"- **Messages**: those below. Replace `{document['input']}` by the input; change nothing else.",
        f"- **Sampling**: temperature {sampling['temperature']:g}, top_p {sampling['top_p']:g}, no repetition penalty,",
        f"  at most {sampling['max_new_tokens']} new tokens: as `rescoldo eval` decodes.",
        f"- **Stop** at {stops}.",
        f"- **Context**: {len(shown['tokens'])} tokens of prompt for the example below, and the new tokens.",
        "",
        "prompt.json in this directory has the same for programs.",
        "",
        "## The messages",
        "",
        *[part for one in document["messages"] for part in (f"{one['role']}:", "", *_block(one["content"]))],
        "## One example as the model sees it",
        "",
        f"{len(shown['tokens'])} tokens, with the chat template applied"
        + (f"; {once}." if document["begins_with_bos"] else "."),
        "",
        *_block(shown["rendered"]),
    ]  # fmt: skip
    write_text(directory / "PROMPT.md", "\n".join(lines))


def _block(text: str) -> list[str]:
    """A code block with fences that do not occur in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}text", text, fence, ""]
