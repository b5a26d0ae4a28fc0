"""What a model's chat template makes of a conversation: its prompts and its answers, as text.

A template comes with the model and is written for one convention or another: some refuse a system message, want the ids
of calls in a form of their own, or arguments as JSON text. A conversation is tried in the forms that are known, and the
first in which the template writes all that is in it is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.role.thinking import MARKS, inner, is_closed, opened_at_end, split_thinking
from rescoldo.role.tools import read_json, short_id

Messages = list[dict[str, Any]]  # role and content; see role.conversation.Conversation


def tools_of(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools that go with the messages (role.conversation.Turns)."""
    return list(getattr(messages, "tools", ()))


def render(
    tokenizer: Any, messages: Messages, *, add_generation_prompt: bool, tools: Sequence[dict[str, Any]] = ()
) -> str:
    """What the chat template writes.

    Whether the model thinks is a property of the run (`thinks`): templates that ask (Qwen3's enable_thinking) leave no
    room for a train of thought unless it does; others ignore it.

    Raises:
        Exception: of many kinds, as the template comes with the model.
    """
    on = thinks(tokenizer)
    more: dict[str, Any] = {"tools": list(tools)} if tools else {}
    more |= {"thinking": True} if on else {}  # DeepSeek's and Granite's name for it
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=on, **more
        )
    )


def thinks(tokenizer: Any) -> bool:
    """Whether prompts leave it to the model to think, which a run is taught that has thinking parts in its data."""
    return bool(getattr(tokenizer, "thinks", False))


def accepted(messages: Messages, tokenizer: Any) -> tuple[Messages, str]:
    """The messages in the form in which the model's chat template takes them, and what it writes for them, up to where
    the answer begins. The tokenizer has a template.

    Where the template has no place for a system message (it refuses one, or leaves it out), the system message becomes
    the beginning of the user's first.

    Raises:
        RescoldoError: the template refuses the messages or is damaged.
    """
    tools = tools_of(messages)
    system = messages[0]["content"].strip() if len(messages) > 1 and messages[0]["role"] == "system" else None
    first: tuple[Messages, str] | None = None
    refused = ""  # why the messages as they are were not taken
    for form in _forms(messages):
        try:
            text = render(tokenizer, form, add_generation_prompt=True, tools=tools)
        except Exception as error:  # jinja2 errors of many kinds: the template comes with the model
            refused = refused or " ".join(str(error).split())[:300]
            continue
        if form[0]["role"] == "system" and system is not None and system not in text:
            continue
        first = first or (form, text)
        if not missing_call(form, text):
            return form, text
    if first:
        return first
    raise RescoldoError(
        f"the model's chat template cannot write the prompt: {refused or 'it leaves the system message out'}",
        where=str(getattr(tokenizer, "name_or_path", "") or "chat template"),
        fix="use an instruct model, or correct chat_template in its tokenizer_config.json",
    ) from None


def _forms(messages: Messages) -> Iterator[Messages]:
    """The same conversation in the forms that templates take: as it is, with the system message in the question, and
    the same with calls as other templates want them."""
    for called in _call_forms(messages):
        yield called
        if len(called) > 1 and called[0]["role"] == "system":
            system, asked, *others = called
            question = f"{system['content']}\n\n{asked['content']}" if system["content"].strip() else asked["content"]
            yield [{**asked, "content": question}, *others]


def _call_forms(messages: Messages) -> Iterator[Messages]:
    """Calls as they are; with ids of nine letters and digits (Mistral); with JSON text for arguments and null for an
    empty content (DeepSeek)."""
    yield list(messages)
    if not any("tool_calls" in message for message in messages):
        return

    def shorter(message: dict[str, Any]) -> dict[str, Any]:
        calls = [{**call, "id": short_id(call["id"])} for call in message.get("tool_calls", ())]
        message = {**message, "tool_calls": calls} if calls else message
        return {**message, "tool_call_id": short_id(message["tool_call_id"])} if "tool_call_id" in message else message

    def textual(message: dict[str, Any]) -> dict[str, Any]:
        if "tool_calls" not in message:
            return message
        calls = [
            {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
        return {**message, "tool_calls": calls, "content": message["content"] or None}

    yield [shorter(message) for message in messages]
    yield [textual(message) for message in messages]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_ANOTHER = "another model; or leave such examples out"


@dataclass(frozen=True)
class AnswerText:
    """What is learned behind a prompt, as text: the answer up to the token that ends it.

    Attributes:
        text: thinking part, content and calls, as the template writes them.
        thinking: how many of its characters are the thinking part.
        end: the token that ends it; "" where the template writes none.
        missing: what of the answer the template leaves out, in words; "" if nothing.
        fix: what to do about that.
    """

    text: str
    thinking: int
    end: str
    missing: str = ""
    fix: str = ""


def is_plain(answer: dict[str, Any], tokenizer: Any) -> bool:
    """Whether an answer is its content and nothing else, so that its text is known without the template."""
    return not thinks(tokenizer) and not {"tool_calls", "reasoning_content"} & set(answer)


def answer_text(asked: Messages, answer: dict[str, Any], tokenizer: Any, ends: Sequence[str]) -> AnswerText:
    """The text of an answer that thinks or calls tools: what the template writes for the conversation with the answer
    beyond what it writes for the prompt.

    A thinking part that a template leaves out of a finished conversation (DeepSeek's, whose prompts open one) is put
    in front, closed: that is what the model has to write.

    Args:
        asked: the messages before the answer, with their tools.
        ends: the tokens that end an answer.
    """
    tools = tools_of(asked)
    problem = ""
    found: AnswerText | None = None
    for form in _forms([*asked, answer]):
        try:
            prompt = render(tokenizer, form[:-1], add_generation_prompt=True, tools=tools)
            whole = render(tokenizer, form, add_generation_prompt=False, tools=tools)
        except Exception as error:  # of many kinds
            problem = problem or f"the chat template refuses the answer: {' '.join(str(error).split())[:200]}"
            continue
        one = _beyond(prompt, whole, form, ends)
        if not one.missing:
            return one
        found = found or one
    return found or AnswerText("", 0, "", problem, _ANOTHER)


def _beyond(prompt: str, whole: str, form: Messages, ends: Sequence[str]) -> AnswerText:
    """What `whole`, the conversation with its answer, has beyond its prompt."""
    answer = form[-1]
    opened = opened_at_end(behind_last(prompt, form[:-1], ends))
    begin = prompt.removesuffix(opened)
    if not whole.startswith(begin):
        what = "the chat template writes the messages before an answer otherwise when the answer follows"
        return AnswerText("", 0, "", what, _ANOTHER)
    text, end = _up_to_end(whole[len(begin) :].removeprefix(opened), ends)
    own, content = split_thinking(answer["content"] or "")
    thoughts = answer.get("reasoning_content", "") or inner(own)
    if opened and not is_closed(opened) and not is_closed(text):
        text = f"{thoughts}\n</think>\n\n{text.lstrip()}"
    what, fix = "", ""
    if thoughts.strip() not in text:
        what = "the chat template has no place for the answer's thinking part"
        fix = "--thinking drop; or a model that thinks"
    elif content.strip() not in text:
        what, fix = "the chat template changes the answer: it does not write it as it is in the dataset", _ANOTHER
        if "tool_calls" in answer:
            what = "the chat template does not write what the assistant says beside a call of a tool"
    elif name := missing_call([answer], text):
        what = f"the chat template leaves out or changes a call of {name} in the answer"
        fix = "a model whose chat template writes calls of tools; or leave such examples out"
    return AnswerText(text, _thinking_length(text), end, what, fix)


def behind_last(prompt: str, asked: Messages, ends: Sequence[str]) -> str:
    """What a prompt has behind the last message: behind its content and the last of `ends`, which close turns."""
    content = (asked[-1]["content"] or "").strip() if asked else ""
    rest = prompt.rpartition(content)[2] if content else prompt
    for end in ends:
        rest = rest.rpartition(end)[2]
    return rest


def _up_to_end(text: str, ends: Sequence[str]) -> tuple[str, str]:
    """What stands before the first of `ends`, and which it is."""
    places = [(at, end) for end in ends if (at := text.find(end)) >= 0]
    if not places:
        return text.rstrip(), ""
    at, end = min(places)
    return text[:at], end


def _thinking_length(text: str) -> int:
    """How long the thinking part at the beginning of an answer is, with the white space behind it."""
    behind = max((text.rfind(end) + len(end) for _, end in MARKS if end in text), default=0)
    return len(text) - len(text[behind:].lstrip()) if behind else 0


def missing_call(messages: Messages, text: str) -> str:
    """The name of the first tool that a message calls and whose call is not in a text with its arguments; ""."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], read_json(call["function"]["arguments"])
            if name not in text or not all(_is_in(value, text) for value in _leaves(arguments)):
                return str(name)
    return ""


def missing_tool(tools: Sequence[dict[str, Any]], text: str) -> str:
    """The name of the first tool whose definition is not in a text; ""."""
    for tool in tools:
        function = tool["function"]
        said = [function["name"], function.get("description") or ""]
        if not all(_is_in(value, text) for value in said):
            return str(function["name"])
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    """Keys and values of a JSON value."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _is_in(value: Any, text: str) -> bool:
    """Whether a text has a value, as it is or as JSON."""
    if isinstance(value, str) and value.strip() in text:
        return True
    return any(json.dumps(value, ensure_ascii=ascii).strip('"') in text for ascii in (False, True))


def is_in(content: str, text: str) -> bool:
    """Whether a text has a message's content, as it is or as JSON (Llama 3 writes the results of tools so)."""
    return _is_in(content.strip(), text)
