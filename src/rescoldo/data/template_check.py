"""Is what is trained what the model's chat template makes of the same conversation?

Each distinct shape of conversation in a dataset is written by the template once with its answer, and compared with the
prompt that training, evaluation and serving use. What would teach something else than was meant is refused by line; a
habit of the template that the user should know is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescoldo.data.records import Record
from rescoldo.data.tokenize import Messages, accepted, end_of_turn, render
from rescoldo.errors import RescoldoError
from rescoldo.role import Role

SHOWN = 5  # lines that a message names
_THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@dataclass(frozen=True)
class Habit:
    """Something that the template does to a conversation.

    Attributes:
        what: in words, for all conversations of that kind alike.
        fix: what to do; "" where it is only worth knowing: a warning.
    """

    what: str
    fix: str = ""


@dataclass
class _Seen:
    """One shape of conversation: the first one of it, and the lines of all."""

    messages: Messages
    answer: str
    lines: list[int] = field(default_factory=list)


def check_template(path: Path, records: Sequence[Record], role: Role, tokenizer: Any) -> list[str]:
    """Compare prompts and answers with what the chat template writes; one rendering for each shape of conversation.

    Returns:
        Warnings, each naming some of its lines.

    Raises:
        RescoldoError: a conversation would be taught in another form than the template has for it.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    shapes: dict[tuple[object, ...], _Seen] = {}
    for index, record in enumerate(records):
        messages, answer = role.messages(record), role.target(record)
        texts = [*(message["content"] for message in messages), answer]
        shape = (*(message["role"] for message in messages), *map(_traits, texts))
        shapes.setdefault(shape, _Seen(messages, answer)).lines.append(record.line or index + 1)
    found: dict[Habit, list[int]] = {}
    for seen in shapes.values():
        for habit in habits(seen.messages, seen.answer, tokenizer):
            found.setdefault(habit, []).extend(seen.lines)
    for habit, lines in found.items():
        if habit.fix:
            first, *others = sorted(lines)
            more = f"; also {_listed(others)}" if others else ""
            raise RescoldoError(habit.what + more, where=f"{path}:{first}", fix=habit.fix)
    return [f"{habit.what} ({path.name}, {_listed(sorted(lines))})" for habit, lines in found.items()]


def _traits(text: str) -> tuple[bool, ...]:
    """What templates look at in a text: white space around it, and thinking marks."""
    marks = tuple(mark in text for pair in _THINKING for mark in pair)
    return (not text.strip(), text != text.lstrip(), text != text.rstrip(), *marks)


def _listed(lines: list[int]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:SHOWN]))}{more}"


def habits(messages: Messages, answer: str, tokenizer: Any) -> Iterator[Habit]:
    """What the template does to one conversation and its answer that is not as expected.

    Raises:
        RescoldoError: it refuses the conversation.
    """
    taken, prompt = accepted(messages, tokenizer)
    yield from _contents(taken, prompt)
    opened = _opens_thinking(prompt, taken)
    if opened and any(mark in answer for pair in _THINKING for mark in pair):
        yield Habit(
            f"the answer brings its own thinking part, and the chat template has already written {opened!r} in "
            "front of it: two would be taught",
            "remove the part up to </think> from the answers; or take a model whose template leaves thinking to the "
            "answer",
        )
        return
    if opened and not any(end in opened for _, end in _THINKING):
        yield Habit(f"the chat template opens a thinking part ({opened!r}) that the answers do not close")
        return
    try:
        whole = render(tokenizer, [*taken, {"role": "assistant", "content": answer}], add_generation_prompt=False)
    except Exception as error:  # of many kinds: the template comes with the model
        yield Habit(f"the chat template does not write a conversation with its answer: {str(error)[:200]}")
        return
    yield from _answer(prompt, whole, answer, opened, tokenizer)


def _contents(messages: Messages, prompt: str) -> Iterator[Habit]:
    """Whether each message is in the prompt, in their order (a system message may be anywhere)."""
    at = 0
    for number, message in enumerate(messages, 1):
        content, start = message["content"], 0 if message["role"] == "system" else at
        found = prompt.find(content.strip(), start)
        if found >= 0:
            if message["role"] != "system":
                at = found + len(content.strip())
            indent = content[: len(content) - len(content.lstrip())]
            if content.strip() and not prompt[:found].endswith(indent):
                yield Habit(
                    f"the chat template removes the white space in front of message {number} ({message['role']})"
                )
            continue
        if message["role"] == "assistant":
            spoken = _without_thinking(content)
            found = prompt.find(spoken, at)
            if spoken != content.strip() and found >= 0:
                at = found + len(spoken)
                yield Habit("the chat template leaves the thinking parts of earlier answers out")
                continue
        yield Habit(
            f"the chat template leaves out or changes message {number} ({message['role']})",
            "another model; or a chat_template that writes each message as it is",
        )


def _without_thinking(text: str) -> str:
    """What follows the last thinking part of a text."""
    for _, end in _THINKING:
        text = text.rpartition(end)[2]
    return text.strip()


def _opens_thinking(prompt: str, messages: Messages) -> str:
    """The thinking part, whole or only opened, with which the prompt ends behind the last message; "" without."""
    content = messages[-1]["content"].strip()
    ending = prompt.rpartition(content)[2] if content else prompt[-200:]
    begins = [ending.find(start) for start, _ in _THINKING if start in ending]
    return ending[min(begins) :] if begins else ""


def _answer(prompt: str, whole: str, answer: str, opened: str, tokenizer: Any) -> Iterator[Habit]:
    """Compare `whole`, the conversation with its answer, with prompt, answer and end of turn."""
    if not whole.startswith(prompt):
        common = _common(prompt, whole)
        if prompt[len(common) :].strip() != opened.strip() or not opened:
            theirs, ours = whole[len(common) :][:60], prompt[len(common) :][:60]
            yield Habit(
                "the chat template writes a conversation that has its answer otherwise than the prompt of the same "
                f"conversation, which is what is trained and asked with: {theirs!r} instead of {ours!r}"
            )
        rest = whole[len(common) :]
    else:
        rest = whole[len(prompt) :]
    before, found, ending = rest.rpartition(answer.strip())
    if not found:
        spoken = _without_thinking(answer)
        before, found, ending = rest.rpartition(spoken)
        if not found or spoken == answer.strip():
            yield Habit(
                "the chat template changes the answer: it does not write it as it is in the dataset",
                "another model; or a chat_template that writes each message as it is",
            )
            return
    elif whole.startswith(prompt) and before.strip() and not _is_thinking(before):
        yield Habit(
            f"the chat template writes {before.strip()[:60]!r} in front of an answer, and does not write it when it is "
            "asked for the prompt: it has no add_generation_prompt branch, or another text there",
            "a chat_template with {% if add_generation_prompt %}; then the same text stands in front of the answer in "
            "training and when the model is asked",
        )
    token = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    between, closed, _ = ending.partition(token)
    if not closed:
        wrote = f"writes {ending.strip()[:40]!r}" if ending.strip() else "writes nothing"
        yield Habit(f"the chat template {wrote} behind an answer; {token} is taught as its end")
    elif between.strip():
        yield Habit(f"the chat template writes {between.strip()[:40]!r} behind an answer, before {token}; not taught")


def _common(one: str, other: str) -> str:
    """The beginning that two texts share."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _is_thinking(text: str) -> bool:
    text = text.strip()
    return any(text.startswith(start) and text.endswith(end) for start, end in _THINKING)
