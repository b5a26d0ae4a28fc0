"""A model's chat template: the text it writes for prompts and for answers.

Templates come with the model and follow different conventions: some refuse a system message, some want tool call ids in
a special form, or arguments as JSON text. A conversation is rendered in each of the known forms in turn, and the first
form whose rendering contains the whole conversation is used.
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
    """The tools that belong to the messages (role.conversation.Turns)."""
    return list(getattr(messages, "tools", ()))


def render(
    tokenizer: Any, messages: Messages, *, add_generation_prompt: bool, tools: Sequence[dict[str, Any]] = ()
) -> str:
    """Render messages with the chat template.

    Whether the model thinks is a property of the run (`thinks`): templates with a switch for it (Qwen3's
    enable_thinking) open no thinking part unless the run has thinking; other templates ignore the switch.

    Raises:
        Exception: of any type, because the template comes with the model.
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
    """Whether prompts let the model think. Runs whose data has thinking parts turn this on."""
    return bool(getattr(tokenizer, "thinks", False))


def accepted(messages: Messages, tokenizer: Any) -> tuple[Messages, str]:
    """The messages in the first form that the chat template accepts, and the prompt that it renders from them.

    The tokenizer must have a template. If the template has no place for a system message (it refuses or drops it), the
    system message is put in front of the first user message.

    Raises:
        RescoldoError: the template refuses the messages or is damaged.
    """
    tools = tools_of(messages)
    system = messages[0]["content"].strip() if len(messages) > 1 and messages[0]["role"] == "system" else None
    first: tuple[Messages, str] | None = None
    refused = ""  # why the unchanged messages were refused
    for form in _forms(messages):
        try:
            text = render(tokenizer, form, add_generation_prompt=True, tools=tools)
        except Exception as error:  # any type: the template comes with the model
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
    """The conversation in the forms that templates accept: unchanged, with the system message merged into the question,
    and both with tool calls in the forms that other templates expect."""
    for called in _call_forms(messages):
        yield called
        if len(called) > 1 and called[0]["role"] == "system":
            system, asked, *others = called
            question = f"{system['content']}\n\n{asked['content']}" if system["content"].strip() else asked["content"]
            yield [{**asked, "content": question}, *others]


def _call_forms(messages: Messages) -> Iterator[Messages]:
    """Tool calls unchanged; with ids of nine letters and digits (Mistral); with arguments as JSON text and an empty
    content as null (DeepSeek)."""
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
    """The text that is learned after a prompt: the answer up to the token that ends it.

    Attributes:
        text: thinking part, content and tool calls, as the template writes them.
        thinking: length of the thinking part, in characters.
        end: the token that ends the answer; "" if the template writes none.
        missing: which part of the answer the template leaves out, for a message; "" if it writes all of it.
        fix: what the user can do about it.
    """

    text: str
    thinking: int
    end: str
    missing: str = ""
    fix: str = ""


def is_plain(answer: dict[str, Any], tokenizer: Any) -> bool:
    """Whether an answer consists of its content alone, so that its text is known without the template."""
    return not thinks(tokenizer) and not {"tool_calls", "reasoning_content"} & set(answer)


def answer_text(asked: Messages, answer: dict[str, Any], tokenizer: Any, ends: Sequence[str]) -> AnswerText:
    """The text of an answer that thinks or calls tools: what the template adds when it renders the conversation with
    the answer instead of the prompt alone.

    Some templates drop the thinking part from a finished conversation (DeepSeek's, whose prompts open one). It is then
    put in front of the answer and closed, because this is what the model has to generate.

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
        except Exception as error:  # any type
            problem = problem or f"the chat template refuses the answer: {' '.join(str(error).split())[:200]}"
            continue
        one = _beyond(prompt, whole, form, ends)
        if not one.missing:
            return one
        found = found or one
    return found or AnswerText("", 0, "", problem, _ANOTHER)


def _beyond(prompt: str, whole: str, form: Messages, ends: Sequence[str]) -> AnswerText:
    """The part of `whole`, the rendered conversation with its answer, that follows its prompt."""
    answer = form[-1]
    opened = opened_at_end(behind_last(prompt, form[:-1], ends))
    begin = prompt.removesuffix(opened)
    if not whole.startswith(begin):
        what = "the chat template changes the earlier messages when the answer follows them"
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
            what = "the chat template leaves out what the assistant says next to a tool call"
    elif name := missing_call([answer], text):
        what = f"the chat template leaves out or changes a call of {name} in the answer"
        fix = "a model whose chat template writes calls of tools; or leave such examples out"
    return AnswerText(text, _thinking_length(text), end, what, fix)


def behind_last(prompt: str, asked: Messages, ends: Sequence[str]) -> str:
    """The text of a prompt after the last message: after its content and the last of `ends`, which close turns."""
    content = (asked[-1]["content"] or "").strip() if asked else ""
    rest = prompt.rpartition(content)[2] if content else prompt
    for end in ends:
        rest = rest.rpartition(end)[2]
    return rest


def _up_to_end(text: str, ends: Sequence[str]) -> tuple[str, str]:
    """The text before the first of `ends`, and that end."""
    places = [(at, end) for end in ends if (at := text.find(end)) >= 0]
    if not places:
        return text.rstrip(), ""
    at, end = min(places)
    return text[:at], end


def _thinking_length(text: str) -> int:
    """The length in characters of the thinking part that begins an answer, with the white space after it."""
    behind = max((text.rfind(end) + len(end) for _, end in MARKS if end in text), default=0)
    return len(text) - len(text[behind:].lstrip()) if behind else 0


def missing_call(messages: Messages, text: str) -> str:
    """The name of the first called tool whose call, with its arguments, is missing from the text; "" if none is."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], read_json(call["function"]["arguments"])
            if name not in text or not all(_is_in(value, text) for value in _leaves(arguments)):
                return str(name)
    return ""


def missing_tool(tools: Sequence[dict[str, Any]], text: str) -> str:
    """The name of the first tool whose definition is missing from the text; "" if none is."""
    for tool in tools:
        function = tool["function"]
        said = [function["name"], function.get("description") or ""]
        if not all(_is_in(value, text) for value in said):
            return str(function["name"])
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    """All keys and values of a JSON value."""
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
    """Whether a text contains a value, unchanged or as JSON."""
    if isinstance(value, str) and value.strip() in text:
        return True
    return any(json.dumps(value, ensure_ascii=ascii).strip('"') in text for ascii in (False, True))


def is_in(content: str, text: str) -> bool:
    """Whether a text contains a message's content, unchanged or as JSON (Llama 3 writes tool results so)."""
    return _is_in(content.strip(), text)
