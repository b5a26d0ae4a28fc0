"""Does the tokenized training data agree with what the model's chat template writes?

The template renders each distinct shape of conversation in a dataset once, with its answer. The rendering is compared
with the prompt that training, evaluation and serving use. Differences that would teach something unintended are errors
with their line; peculiarities of the template that the user should know are warnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescoldo.data.chat_template import Messages, accepted, behind_last, is_in, missing_call, missing_tool, render
from rescoldo.data.teaching import LAST, Teaching
from rescoldo.data.tokenize import (
    Ending,
    end_of_turn,
    text_of_answer,
    without_thoughts,
)
from rescoldo.errors import RescoldoError
from rescoldo.role import Role
from rescoldo.role.conversation import Turns
from rescoldo.role.record import Record
from rescoldo.role.thinking import MARKS, is_closed, opened_at_end, spoken

SHOWN = 5  # lines that a message names
_WRITE = "another model; or a chat_template that writes each message as it is"


@dataclass(frozen=True)
class Habit:
    """Something unexpected that the template does to a conversation.

    Attributes:
        what: its description, the same for all conversations that it affects.
        fix: what to do about it; "" for a mere warning.
    """

    what: str
    fix: str = ""


@dataclass
class _Seen:
    """One shape of conversation: its first example, and the lines of all of them."""

    messages: Turns
    answer: dict[str, Any]
    lines: list[int] = field(default_factory=list)


def check_template(
    path: Path, records: Sequence[Record], role: Role, tokenizer: Any, teaching: Teaching = LAST
) -> list[str]:
    """Compare prompts and answers with the chat template's rendering, once for each shape of conversation.

    Returns:
        Warnings; each names some of its lines.

    Raises:
        RescoldoError: a conversation would be learned in another form than the template writes.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    shapes: dict[tuple[object, ...], _Seen] = {}
    for index, record in enumerate(records):
        whole = role.conversation(record)
        messages = [without_thoughts(one) if teaching.thinking == "drop" else one for one in whole.messages]
        traits = [_traits(message) for message in messages]
        tools = tuple(tool["function"]["name"] for tool in whole.tools)
        for place in whole.learned[-1:] if teaching.loss == "last" else whole.learned:
            shape = (tools, *traits[: place + 1])
            seen = shapes.setdefault(shape, _Seen(Turns(messages[:place], whole.tools), messages[place]))
            line = record.line or index + 1
            if line not in seen.lines[-1:]:
                seen.lines.append(line)
    found: dict[Habit, list[int]] = {}
    for seen in shapes.values():
        try:
            own = list(habits(seen.messages, seen.answer, tokenizer))
        except RescoldoError as error:  # the template refuses the messages
            raise RescoldoError(error.what, where=f"{path}:{min(seen.lines)}", fix=error.fix) from None
        for habit in own:
            found.setdefault(habit, []).extend(seen.lines)
    for habit, every in found.items():
        if habit.fix:
            first, *others = sorted(set(every))
            more = f"; also {_listed(others)}" if others else ""
            raise RescoldoError(habit.what + more, where=f"{path}:{first}", fix=habit.fix)
    return [f"{habit.what} ({path.name}, {_listed(sorted(set(lines)))})" for habit, lines in found.items()]


def _traits(message: dict[str, Any]) -> tuple[object, ...]:
    """The properties of a message that templates depend on: its keys, white space around its text, thinking marks."""
    text = message["content"]
    marks = tuple(mark in text for pair in MARKS for mark in pair)
    calls = len(message.get("tool_calls", ()))
    named = (*sorted(message), calls, not text.strip(), text != text.lstrip(), text != text.rstrip())
    return (message["role"], *named, *marks)


def _listed(lines: list[int]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:SHOWN]))}{more}"


def habits(messages: Turns, answer: dict[str, Any], tokenizer: Any) -> Iterator[Habit]:
    """What the template does unexpectedly to one conversation and its answer.

    Raises:
        RescoldoError: the template refuses the conversation.
    """
    taken, prompt = accepted(messages, tokenizer)
    yield from _contents(taken, prompt)
    yield from _tools(taken, messages.tools, prompt)
    yield from _names(taken, messages.tools, prompt, tokenizer)
    ending = Ending.of(tokenizer)
    templated = text_of_answer(messages, answer, tokenizer, ending)
    if templated is not None:
        if templated.missing:
            yield Habit(templated.missing, templated.fix)
            return
        if not templated.end:
            token = tokenizer.convert_ids_to_tokens(ending.end)
            yield Habit(f"the chat template writes no end after an answer; {token} is taught as its end")
        return
    text, opened = answer["content"], opened_at_end(behind_last(prompt, taken, list(ending.others)))
    if opened and any(mark in text for pair in MARKS for mark in pair):
        yield Habit(
            f"the chat template already writes {opened!r} in front of an answer that brings its own thinking part: "
            "two would be taught",
            "--thinking drop leaves thinking parts out; or have them in the training examples too, so that prompts let "
            "the model think",
        )
        return
    if opened and not is_closed(opened):
        yield Habit(f"the chat template opens a thinking part ({opened!r}) that the answers do not close")
        return
    try:
        whole = render(
            tokenizer,
            [*taken, {"role": "assistant", "content": text}],
            add_generation_prompt=False,
            tools=messages.tools,
        )
    except Exception as error:  # any type: the template comes with the model
        yield Habit(f"the chat template does not write a conversation with its answer: {str(error)[:200]}")
        return
    yield from _answer(prompt, whole, text, opened, tokenizer)


def _tools(messages: Messages, tools: Sequence[dict[str, Any]], prompt: str) -> Iterator[Habit]:
    """Check that the tools and their calls are in the prompt."""
    fix = "a model whose chat template knows tools; or leave `tools` out if the answers do not need them"
    if name := missing_tool(tools, prompt):
        yield Habit(f"the chat template has no place for tools: it leaves out or changes {name}", fix)
    elif name := missing_call(messages, prompt):
        yield Habit(f"the chat template leaves out or changes a call of the tool {name}", fix)


def _names(messages: Messages, tools: Sequence[dict[str, Any]], prompt: str, tokenizer: Any) -> Iterator[Habit]:
    """Check that the speakers' names are in the prompt (a tool's name is that of its call)."""
    named = [message for message in messages if message.get("name") and message["role"] != "tool"]
    if not named:
        return
    bare = [{key: value for key, value in one.items() if key != "name" or one not in named} for one in messages]
    if render(tokenizer, bare, add_generation_prompt=True, tools=tools) == prompt:
        yield Habit(
            f"the chat template has no place for the names of speakers ({named[0]['name'][:40]})",
            "put the names into the text, or leave them out",
        )


def _contents(messages: Messages, prompt: str) -> Iterator[Habit]:
    """Check that each message is in the prompt, in order (a system message may be anywhere, and tool results may be
    written as JSON)."""
    at = 0
    for number, message in enumerate(messages, 1):
        content = message["content"] or ""
        start = 0 if message["role"] == "system" else at
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
        if message["role"] == "tool" and is_in(content, prompt[at:]):
            continue
        if message["role"] == "assistant":
            said = spoken(content)
            found = prompt.find(said, at)
            if said != content.strip() and found >= 0:
                at = found + len(said)
                yield Habit("the chat template leaves the thinking parts of earlier answers out")
                continue
        yield Habit(f"the chat template leaves out or changes message {number} ({message['role']})", _WRITE)


def _answer(prompt: str, whole: str, answer: str, opened: str, tokenizer: Any) -> Iterator[Habit]:
    """Compare `whole`, the rendered conversation with its answer, with prompt, answer and end of turn."""
    if not whole.startswith(prompt):
        common = _common(prompt, whole)
        if prompt[len(common) :].strip() != opened.strip() or not opened:
            theirs, ours = whole[len(common) :][:60], prompt[len(common) :][:60]
            yield Habit(
                "the chat template renders a conversation with its answer differently from the prompt that training "
                f"and inference use: {theirs!r} instead of {ours!r}"
            )
        rest = whole[len(common) :]
    else:
        rest = whole[len(prompt) :]
    before, found, ending = rest.rpartition(answer.strip())
    if not found:
        said = spoken(answer)
        before, found, ending = rest.rpartition(said)
        if not found or said == answer.strip():
            yield Habit(
                "the chat template changes the answer: it does not write it as it is in the dataset",
                _WRITE,
            )
            return
    elif whole.startswith(prompt) and before.strip() and not _is_thinking(before):
        yield Habit(
            f"the chat template writes {before.strip()[:60]!r} in front of an answer, but not at the end of the "
            "prompt: it has no add_generation_prompt branch, or another text there",
            "a chat_template with {% if add_generation_prompt %}, so that the same text is in front of the answer in "
            "training and in inference",
        )
    token = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    between, closed, _ = ending.partition(token)
    if not closed:
        wrote = f"writes {ending.strip()[:40]!r}" if ending.strip() else "writes nothing"
        yield Habit(f"the chat template {wrote} after an answer; {token} is taught as its end")
    elif between.strip():
        yield Habit(f"the chat template writes {between.strip()[:40]!r} after an answer, before {token}; not taught")


def _common(one: str, other: str) -> str:
    """The longest common prefix of two texts."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _is_thinking(text: str) -> bool:
    text = text.strip()
    return any(text.startswith(start) and text.endswith(end) for start, end in MARKS)
