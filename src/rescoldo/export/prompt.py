"""How to call an exported model so that it sees the prompt it was trained on: prompt.json and PROMPT.md."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rescoldo.data import read_records
from rescoldo.data.tokenize import prompt_ids, prompt_text, stop_ids
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.export.source import Source
from rescoldo.files import write_json, write_text

PLACEHOLDER = "{concept}"
_CONCEPT = "A tool library where neighbours lend each other tools"


def example_record(source: Source) -> dict[str, Any]:
    """The first record that the run was validated on, while its file is there; else one of our own."""
    path = source.info.get("val_dataset")
    try:
        records = read_records(Path(path), answers=False) if isinstance(path, str) and path else []
    except RescoldoError:
        records = []
    return dict(records[0]) if records else {"concept": _CONCEPT}


def prompt_document(source: Source) -> dict[str, Any]:
    """What prompt.json holds.

    Returns:
        role; messages (with {concept} where the concept goes); sampling as the evaluation decodes; stop (the texts of
        the tokens that end an answer) and stop_ids; example: messages, rendered (the text before the answer, through
        the chat template) and tokens (its ids); begins_with_bos: whether the rendered text already has the token that
        begins a sequence, so that nothing may add it a second time.
    """
    tokenizer, role = source.tokenizer, source.role
    sampling = Sampling()
    record = example_record(source)
    messages = role.messages(record)
    rendered = prompt_text(messages, tokenizer)
    ends = sorted(stop_ids(tokenizer))
    return {
        "role": role.name,
        "base_model": source.base.spec,
        "messages": role.messages({"concept": PLACEHOLDER}),
        "sampling": asdict(sampling),
        "stop": [tokenizer.convert_ids_to_tokens(index) for index in ends],
        "stop_ids": ends,
        "begins_with_bos": bool(tokenizer.bos_token and rendered and rendered.startswith(tokenizer.bos_token)),
        "example": {
            "concept": role.key(record),
            "messages": messages,
            "rendered": rendered,
            "tokens": prompt_ids(messages, tokenizer),
        },
    }


def write_prompt(directory: Path, document: dict[str, Any], calls: list[str]) -> None:
    """Write prompt.json and, for people, PROMPT.md with the commands in `calls`."""
    write_json(directory / "prompt.json", document)
    message = document["messages"][-1]["content"]
    example, sampling = document["example"], document["sampling"]
    stops = ", ".join(f"`{text}`" for text in document["stop"])
    once = "the token that begins a sequence is part of it: nothing may add a second one"
    lines = [
        "# How to call this model",
        "",
        f"It was trained for the role `{document['role']}` on `{document['base_model']}`. It answers well when it sees",
        "the prompt that it was trained on, through the model's own chat template.",
        "",
        *[part for call in calls for part in ("```sh", call, "```", "")],
        f"- **Message**: one user message. Replace `{PLACEHOLDER}` at its end by the concept; change nothing else.",
        f"- **Sampling**: temperature {sampling['temperature']:g}, top_p {sampling['top_p']:g}, no repetition penalty,",
        f"  at most {sampling['max_new_tokens']} new tokens: as `rescoldo eval` decodes.",
        f"- **Stop** at {stops}.",
        f"- **Context**: {len(example['tokens'])} tokens of prompt for the example below, and the new tokens.",
        "",
        "prompt.json beside this file says the same for programs.",
        "",
        "## The message",
        "",
        *_block(message),
        "## One example as the model sees it",
        "",
        f"{len(example['tokens'])} tokens, the chat template applied"
        + (f"; {once}." if document["begins_with_bos"] else "."),
        "",
        *_block(example["rendered"]),
    ]  # fmt: skip
    write_text(directory / "PROMPT.md", "\n".join(lines))


def _block(text: str) -> list[str]:
    """Text between fences that it does not contain itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}text", text, fence, ""]
