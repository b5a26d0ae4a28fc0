"""Conversations in the forms that other programs read: OpenAI's, ShareGPT's, Alpaca's.

A record becomes a list of messages with all their keys, and these are written in the form that is asked for. What a
form has no place for is refused: nothing is left out.
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
    """A record has no place in a form; the message says why."""


def export_records(path: Path, role: Role, form: str, output: Path) -> int:
    """Write a dataset in another program's form. Returns the number of records.

    Args:
        form: one of FORMS.

    Raises:
        RescoldoError: a line has faults, or holds what the form has no place for; then nothing is written.
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
            messages, beside = messages_of(record, role)
            made = FORMS[form](messages, beside)
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
    """Each record and where it stands.

    Raises:
        RescoldoError: a line is no JSON object, or the role finds faults that are not only about what is learned.
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
    """A record's messages as OpenAI writes them, and what stands beside them.

    Raises:
        _UnfitError: it has no messages.
    """
    if not role.spec.conversational or role.spec.prompt is not None:
        asked = [dict(message) for message in role.messages(record)]
        rest = {k: v for k, v in record.items() if k not in (role.input, role.spec.answer) and k in keys.ANNOTATIONS}
        return [*asked, {"role": "assistant", "content": role.target(record)}], rest
    name = next((key for key in LISTED if isinstance(record.get(key), list)), "")
    if name:
        beside = {key: value for key, value in record.items() if key not in (name, "system")}
        if any(_of_sharegpt_s_tools(message) or _is_loose(message) for message in record[name]):
            return _read(record, role), beside
        return [*_system(record), *(_openai(message) for message in record[name])], beside
    return _pair(record, role)


def _of_sharegpt_s_tools(message: Message) -> bool:
    """Whether a message is a call or a result in ShareGPT's way, where `value` is the call and no id is given."""
    return "from" in message and SPEAKERS.get(str(message["from"]).strip().lower()) in (None, "tool")


def _is_loose(message: Message) -> bool:
    """Whether a message has calls or a result that are read here, and are not written as OpenAI wants them."""
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
    """The messages as training reads them, in OpenAI's form: arguments as text, ids of calls, weights."""
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
    beside = {key: value for key, value in record.items() if key not in used}
    listed = [one for key in (asked, answered) if isinstance(record[key], list) for one in record[key]]
    if any(map(_is_loose, listed)):
        return _read(record, role), beside
    messages = _system(record)
    for question, answer in record.get("history") or []:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if isinstance(record[asked], list):
        told = map(_openai, record[asked])  # TRL's: of these none is learned
        messages += ({**one, "weight": 0} if one["role"] == "assistant" else one for one in told)
    else:
        parts = [record[asked], *(record[key] for key in ("input", "context") if key in used and record.get(key))]
        messages.append({"role": "user", "content": "\n\n".join(parts)})
    if isinstance(record[answered], list):
        return [*messages, *map(_openai, record[answered])], beside
    return [*messages, {"role": "assistant", "content": record[answered]}], beside


def _system(record: dict[str, Any]) -> list[Message]:
    return [{"role": "system", "content": record["system"]}] if record.get("system") else []


def _openai(message: Message) -> Message:
    """A message with OpenAI's names of its keys and speakers."""
    speaker = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    others = {key: value for key, value in message.items() if key not in ("role", "from", "content", "value")}
    if others.get("tool_calls"):
        others["tool_calls"] = [{"id": call["id"], "type": "function", **call} for call in others["tool_calls"]]
    plain = str(speaker).strip().lower()
    return {"role": SPEAKERS.get(plain, plain), "content": content, **others}


def _to_openai(messages: list[Message], beside: dict[str, Any]) -> dict[str, Any]:
    tools, rest = _tools(beside)
    return {"messages": messages, **rest, **({"tools": tools} if tools else {})}


def _tools(beside: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The definitions of tools in OpenAI's form, and what else stands beside the messages."""
    rest = {key: value for key, value in beside.items() if key not in TOOLS}
    given = next((beside[key] for key in TOOLS if not keys.is_empty(beside.get(key))), None)
    return ([] if given is None else read_tools(given, "tools")[0]), rest


def _to_sharegpt(messages: list[Message], beside: dict[str, Any]) -> dict[str, Any]:
    made, waiting = [], list[str]()  # ids of calls without a result: in this form results have none, and go by order
    for place, message in enumerate(messages):
        where, role = f"messages[{place}]", message["role"]
        others = {key: value for key, value in message.items() if key not in ("role", "content")}
        calls = others.pop("tool_calls", None)
        if role == "assistant" and calls and not message["content"]:
            waiting += [call["id"] for call in calls]
            turn = {"from": "function_call", "value": _calls_text(calls)}
        elif role == "tool" and isinstance(message["content"], str):
            if waiting[:1] != [others.pop("tool_call_id", None)]:
                raise _UnfitError(f"{where} has no place in ShareGPT's form: results are in another order than calls")
            waiting.pop(0)
            others.pop("name", None)  # of the tool: the call has it
            turn = {"from": "observation", "value": message["content"]}
        elif calls:
            raise _UnfitError(f"{where}.tool_calls has no place in ShareGPT's form beside a text")
        elif role in _SHAREGPT and isinstance(message["content"], str):
            turn = {"from": _SHAREGPT[role], "value": message["content"]}
        else:
            raise _UnfitError(f"{where} has no place in ShareGPT's form: it is no text of user or assistant")
        unknown = next((key for key in others if key in keys.MEANINGS and not keys.is_empty(others[key])), "")
        if unknown:
            raise _UnfitError(f"{where}.{unknown} has no place in ShareGPT's form")
        made.append({**turn, **others})
    tools, rest = _tools(beside)
    told = {"tools": json.dumps([_bare(tool) for tool in tools], ensure_ascii=False)} if tools else {}
    return {"conversations": made, **told, **_without_tools(rest, "ShareGPT")}


def _calls_text(calls: list[dict[str, Any]]) -> str:
    """Calls as the value of a `function_call`: one as an object, several as a list."""
    plain = [
        {"name": call["function"]["name"], "arguments": read_json(call["function"]["arguments"]) or {}}
        for call in calls
    ]
    return json.dumps(plain[0] if len(plain) == 1 else plain, ensure_ascii=False)


def _bare(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's definition without OpenAI's wrapping, where nothing else is in it."""
    return tool["function"] if set(tool) <= {"type", "function"} else tool


def _to_alpaca(messages: list[Message], beside: dict[str, Any]) -> dict[str, Any]:
    turns = list(messages)
    for place, message in enumerate(turns):
        extra = next((key for key in message if key not in ("role", "content") and not keys.is_empty(message[key])), "")
        if extra or not isinstance(message["content"], str):
            raise _UnfitError(f"messages[{place}].{extra or 'content'} has no place in Alpaca's form")
    system = {"system": turns.pop(0)["content"]} if turns and turns[0]["role"] == "system" else {}
    if not turns or [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise _UnfitError("is not questions and their answers in turn, which is all that Alpaca's form has a place for")
    *before, asked, answer = (turn["content"] for turn in turns)
    history = {"history": [list(pair) for pair in zip(before[::2], before[1::2], strict=True)]} if before else {}
    made = {"instruction": asked, "input": "", "output": answer, **history, **system}
    return {**made, **_without_tools(beside, "Alpaca")}


def _without_tools(beside: dict[str, Any], form: str) -> dict[str, Any]:
    """What stands beside the messages, where it can stand beside them in a form without tools and the like."""
    found = next((key for key in beside if key in keys.MEANINGS and not keys.is_empty(beside[key])), "")
    if found:
        raise _UnfitError(f"{found} has no place in {form}'s form")
    return beside


FORMS: dict[str, Callable[[list[Message], dict[str, Any]], dict[str, Any]]] = {
    "openai": _to_openai,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
}
