"""Tools: their definitions in a line, an assistant's calls, and calls in a model's text.

Definitions are converted to OpenAI's format, {"type": "function", "function": {name, description, parameters}}, and
calls to {"id", "type", "function": {"name", "arguments"}} with the arguments as an object, which chat templates expect.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from rescoldo.role.fault import Finding, kind

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_WRITTEN = (  # calls as models write them: in Hermes' and Qwen's format, in Mistral's
    re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL),
    re.compile(r"\[TOOL_CALLS\]\s*(.*)", re.DOTALL),
)
_PYTHON_TAG = "<|python_tag|>"  # Llama 3, before a call


def read_json(value: Any) -> Any:
    """Parse a text as JSON; other values are returned unchanged.

    Raises:
        ValueError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_tools(value: Any, where: str) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The definitions of a line's `tools`: a list, or the JSON text of one; bare functions are wrapped."""
    try:
        listed = read_json(value)
    except ValueError as error:
        return [], [Finding(where, "tools", f"is not JSON: {error}")]
    if not isinstance(listed, list):
        return [], [Finding(where, "tools", f"is {kind(listed)}: expected a list of tools")]
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(listed):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            return [], [
                Finding(f"{where}[{index}]", "tools", f"is of type {tool['type']!r:.40}: only functions are supported")
            ]
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            what = 'is not a function with a name: expected {"type": "function", "function": {"name": …}}'
            return [], [Finding(f"{where}[{index}]", "tools", what)]
        tools.append(tool if "function" in tool else {"type": "function", "function": function})
    return tools, []


def read_calls(value: Any, where: str) -> tuple[list[dict[str, Any]], list[Finding]]:
    """An assistant's calls: a list of them or a single one, each as an object or its JSON text. Calls without an id get
    one in `number_calls`."""
    try:
        listed = read_json(value)
    except ValueError as error:
        return [], [Finding(where, "tools", f"is not the JSON of a call: {error}")]
    calls: list[dict[str, Any]] = []
    for index, one in enumerate(listed if isinstance(listed, list) else [listed]):
        place = f"{where}[{index}]" if isinstance(listed, list) else where
        try:
            call = read_json(one)
            function = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(function, dict) or not _is_name(function.get("name")):
                return [], [Finding(place, "tools", "is not a call with the name of a function")]
            arguments = read_json(function.get("arguments", function.get("parameters")) or {})
        except ValueError as error:
            return [], [Finding(place, "tools", f"holds arguments that are not JSON: {error}")]
        if not isinstance(arguments, dict):
            return [], [Finding(place, "tools", f"holds arguments that are {kind(arguments)}: expected an object")]
        kept = call.get("id")
        if kept is not None and not isinstance(kept, str):
            return [], [Finding(f"{place}.id", "type", f"is {kind(kept)}: expected text")]
        made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        calls.append({"id": kept, **made} if kept else made)
    return calls, []


def number_calls(calls: list[dict[str, Any]], place: int) -> list[dict[str, Any]]:
    """The calls of the message with index `place`, each with an id; a new id is a hash of the call and its place."""
    return [
        call if "id" in call else {"id": short_id(f"{place}.{number} {json.dumps(call, sort_keys=True)}"), **call}
        for number, call in enumerate(calls)
    ]


def short_id(text: str) -> str:
    """An id of nine letters and digits, the only form that Mistral's templates accept."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8])
    return "".join(_ALPHABET[number // 62**power % 62] for power in range(9))


def call_text(calls: list[dict[str, Any]]) -> str:
    """Calls as one text, a line of JSON for each, for comparisons independent of the template."""
    return "\n".join(
        json.dumps(
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]},
            ensure_ascii=False,
            sort_keys=True,
        )
        for call in calls
    )


def written_calls(text: str) -> str:
    """A model's text with its calls written as in `call_text`; unchanged if it has none."""
    for pattern in _WRITTEN:
        found = [calls for part in pattern.findall(text) if (calls := _calls_of(part))]
        if found:
            said = pattern.sub("", text).strip()
            return "\n".join([*([said] if said else []), *map(call_text, found)])
    bare = text.strip().removeprefix(_PYTHON_TAG)
    calls = _calls_of(bare) if bare.startswith(("{", "[")) else []
    return call_text(calls) if calls else text


def _calls_of(text: str) -> list[dict[str, Any]]:
    calls, findings = read_calls(text, "")
    return [] if findings else calls


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
