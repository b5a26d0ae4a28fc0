"""Conversations in the formats of other programs: OpenAI's, ShareGPT's, Alpaca's.

A record becomes a list of messages with all their keys, which is written in the requested format. What a format cannot
represent is an error: nothing is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rescoldo.data.fix import refuse_existing, unwritable
from rescoldo.data.records import flag, read_lines
from rescoldo.errors import RescoldoError
from rescoldo.files import quote, write_atomic
from rescoldo.invocation import program
from rescoldo.role import Role, keys
from rescoldo.role.conversation import COMPLETIONS, LISTED, TOOLS
from rescoldo.role.fault import errors
from rescoldo.role.message import SPEAKERS
from rescoldo.role.tools import read_json, read_tools

Message = dict[str, Any]
_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}
_ASKED = ("instruction", "prompt")


class _UnfitError(ValueError):
    """A record that a format cannot represent; the message says why."""


def export_records(path: Path, role: Role, form: str, output: Path) -> int:
    """Write a dataset in another program's format. Returns the number of records.

    Args:
        form: one of FORMS.

    Raises:
        RescoldoError: a line has faults, or holds what the format cannot represent; in this case nothing is written.
    """
    refuse_existing(output)
    written = [0]

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            written[0] = _write(path, role, form, file)

    try:
        write_atomic(output, write)
    except OSError as error:
        raise unwritable(output, error) from None
    return written[0]


def _write(path: Path, role: Role, form: str, file: IO[bytes]) -> int:
    records = 0
    for where, record in _sound(path, role):
        try:
            messages, extra = messages_of(record, role)
            made = FORMS[form](messages, extra)
        except _UnfitError as error:
            raise RescoldoError(
                f"{error}", where=where, fix="leave that line out, or export to openai, which holds all of it"
            ) from None
        file.write(json.dumps(made, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        records += 1
    if not records:
        raise RescoldoError("holds no records", where=str(path))
    return records


def _sound(path: Path, role: Role) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record and its place in the file.

    Raises:
        RescoldoError: a line is not a JSON object, or the role finds faults that concern more than what is learned.
    """
    for line in read_lines(path):
        faults = list(line.faults)
        if line.value is not None:
            found = role.check(line.value, str(path), line.number)
            faults += [one for one in errors(found) if one.code != "meaning"]
        if faults or line.value is None:
            raise RescoldoError(
                faults[0].what, where=faults[0].where, fix=f"{program()} data audit {quote(path)}{flag(role)}"
            )
        yield f"{path}:{line.number}", line.value


def messages_of(record: dict[str, Any], role: Role) -> tuple[list[Message], dict[str, Any]]:
    """A record's messages in OpenAI's format, and the record's other keys.

    Raises:
        _UnfitError: it has no messages.
    """
    if not role.spec.conversational or role.spec.prompt is not None:
        asked = [dict(message) for message in role.messages(record)]
        rest = {k: v for k, v in record.items() if k not in (role.input, role.spec.answer) and k in keys.ANNOTATIONS}
        return [*asked, {"role": "assistant", "content": role.target(record)}], rest
    name = next((key for key in LISTED if isinstance(record.get(key), list)), "")
    if name:
        extra = {key: value for key, value in record.items() if key not in (name, "system")}
        if any(_of_sharegpt_s_tools(message) or _is_loose(message) for message in record[name]):
            return _read(record, role), extra
        return [*_system(record), *(_openai(message) for message in record[name])], extra
    return _pair(record, role)


def _of_sharegpt_s_tools(message: Message) -> bool:
    """Whether a message is a tool call or result in ShareGPT's format, where `value` is the call and there is no id."""
    return "from" in message and SPEAKERS.get(str(message["from"]).strip().lower()) in (None, "tool")


def _is_loose(message: Message) -> bool:
    """Whether a message has tool calls or a result in a format that is readable but not OpenAI's."""
    calls = message.get("tool_calls")
    if not keys.is_empty(message.get("function_call")):
        return True
    if str(message.get("role")).strip().lower() in ("tool", "function") and not message.get("tool_call_id"):
        return True
    return not keys.is_empty(calls) and not (isinstance(calls, list) and all(map(_is_openai_s_call, calls)))


def _is_openai_s_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(call.get("id"), str):
        return False
    return call.get("type", "function") == "function" and isinstance(function.get("arguments"), str)


def _read(record: dict[str, Any], role: Role) -> list[Message]:
    """The messages as training reads them, in OpenAI's format: arguments as text, ids of calls, weights."""
    whole = role.read(record)["turns"].whole
    made = []
    for place, message in enumerate(whole.messages):
        weight = {"weight": 0} if message["role"] == "assistant" and place not in whole.learned else {}
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls", [])
        ]
        made.append({**message, **({"tool_calls": calls} if calls else {}), **weight})
    return made


def _pair(record: dict[str, Any], role: Role) -> tuple[list[Message], dict[str, Any]]:
    asked = next((key for key in _ASKED if key in record), "")
    answered = next((key for key in COMPLETIONS if record.get(key) is not None), "")
    if not asked or not answered:
        raise _UnfitError("holds no conversation: no messages, and no question with its answer")
    used = {asked, answered, "system", "history", *(("input", "context") if asked == "instruction" else ())}
    extra = {key: value for key, value in record.items() if key not in used}
    listed = [one for key in (asked, answered) if isinstance(record[key], list) for one in record[key]]
    if any(map(_is_loose, listed)):
        return _read(record, role), extra
    messages = _system(record)
    for question, answer in record.get("history") or []:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if isinstance(record[asked], list):
        told = map(_openai, record[asked])  # TRL's format: the prompt's messages are not learned
        messages += ({**one, "weight": 0} if one["role"] == "assistant" else one for one in told)
    else:
        parts = [record[asked], *(record[key] for key in ("input", "context") if key in used and record.get(key))]
        messages.append({"role": "user", "content": "\n\n".join(parts)})
    if isinstance(record[answered], list):
        return [*messages, *map(_openai, record[answered])], extra
    return [*messages, {"role": "assistant", "content": record[answered]}], extra


def _system(record: dict[str, Any]) -> list[Message]:
    return [{"role": "system", "content": record["system"]}] if record.get("system") else []


def _openai(message: Message) -> Message:
    """A message with OpenAI's names for its keys and speakers."""
    speaker = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    others = {key: value for key, value in message.items() if key not in ("role", "from", "content", "value")}
    if others.get("tool_calls"):
        others["tool_calls"] = [{"id": call["id"], "type": "function", **call} for call in others["tool_calls"]]
    plain = str(speaker).strip().lower()
    return {"role": SPEAKERS.get(plain, plain), "content": content, **others}


def _to_openai(messages: list[Message], extra: dict[str, Any]) -> dict[str, Any]:
    tools, rest = _tools(extra)
    return {"messages": messages, **rest, **({"tools": tools} if tools else {})}


def _tools(extra: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The tool definitions in OpenAI's format, and the record's other keys."""
    rest = {key: value for key, value in extra.items() if key not in TOOLS}
    given = next((extra[key] for key in TOOLS if not keys.is_empty(extra.get(key))), None)
    return ([] if given is None else read_tools(given, "tools")[0]), rest


def _to_sharegpt(messages: list[Message], extra: dict[str, Any]) -> dict[str, Any]:
    made, waiting = [], list[str]()  # ids of calls without a result: ShareGPT matches results to calls by order
    for place, message in enumerate(messages):
        where, role = f"messages[{place}]", message["role"]
        others = {key: value for key, value in message.items() if key not in ("role", "content")}
        calls = others.pop("tool_calls", None)
        if role == "assistant" and calls and not message["content"]:
            waiting += [call["id"] for call in calls]
            turn = {"from": "function_call", "value": _calls_text(calls)}
        elif role == "tool" and isinstance(message["content"], str):
            if waiting[:1] != [others.pop("tool_call_id", None)]:
                raise _UnfitError(
                    f"{where} cannot be written in ShareGPT's format: results are in another order than calls"
                )
            waiting.pop(0)
            others.pop("name", None)  # the tool's name, which the call has already
            turn = {"from": "observation", "value": message["content"]}
        elif calls:
            raise _UnfitError(f"{where}.tool_calls cannot be written in ShareGPT's format next to a text")
        elif role in _SHAREGPT and isinstance(message["content"], str):
            turn = {"from": _SHAREGPT[role], "value": message["content"]}
        else:
            raise _UnfitError(f"{where} cannot be written in ShareGPT's format: expected a text of user or assistant")
        unknown = next((key for key in others if key in keys.MEANINGS and not keys.is_empty(others[key])), "")
        if unknown:
            raise _UnfitError(f"{where}.{unknown} cannot be written in ShareGPT's format")
        made.append({**turn, **others})
    tools, rest = _tools(extra)
    told = {"tools": json.dumps([_bare(tool) for tool in tools], ensure_ascii=False)} if tools else {}
    return {"conversations": made, **told, **_without_tools(rest, "ShareGPT")}


def _calls_text(calls: list[dict[str, Any]]) -> str:
    """Tool calls as the value of a `function_call`: a single one as an object, several as a list."""
    plain = [
        {"name": call["function"]["name"], "arguments": read_json(call["function"]["arguments"]) or {}}
        for call in calls
    ]
    return json.dumps(plain[0] if len(plain) == 1 else plain, ensure_ascii=False)


def _bare(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's definition without OpenAI's wrapper, if the wrapper holds nothing more."""
    return tool["function"] if set(tool) <= {"type", "function"} else tool


def _to_alpaca(messages: list[Message], extra: dict[str, Any]) -> dict[str, Any]:
    turns = list(messages)
    for place, message in enumerate(turns):
        unknown = next(
            (key for key in message if key not in ("role", "content") and not keys.is_empty(message[key])), ""
        )
        if unknown or not isinstance(message["content"], str):
            raise _UnfitError(f"messages[{place}].{unknown or 'content'} cannot be written in Alpaca's format")
    system = {"system": turns.pop(0)["content"]} if turns and turns[0]["role"] == "system" else {}
    if not turns or [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise _UnfitError("cannot be written in Alpaca's format: expected questions and answers in turn, nothing else")
    *before, asked, answer = (turn["content"] for turn in turns)
    history = {"history": [list(pair) for pair in zip(before[::2], before[1::2], strict=True)]} if before else {}
    made = {"instruction": asked, "input": "", "output": answer, **history, **system}
    return {**made, **_without_tools(extra, "Alpaca")}


def _without_tools(extra: dict[str, Any], form: str) -> dict[str, Any]:
    """The record's other keys; raises _UnfitError if they include tools or the like, which the format lacks."""
    found = next((key for key in extra if key in keys.MEANINGS and not keys.is_empty(extra[key])), "")
    if found:
        raise _UnfitError(f"{found} cannot be written in {form}'s format")
    return extra


FORMS: dict[str, Callable[[list[Message], dict[str, Any]], dict[str, Any]]] = {
    "openai": _to_openai,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
}
