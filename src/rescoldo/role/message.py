"""One message of a conversation in OpenAI's format ({role, content, …}) or ShareGPT's ({from, value})."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rescoldo.role import keys, thinking
from rescoldo.role.fault import Finding, kind, text_findings
from rescoldo.role.tools import read_calls

SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "tool_result", "ipython"), "tool"),
}
_CALLERS = ("function_call", "tool_call")  # ShareGPT's speakers for an assistant's message that is a call
_CALLS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning", "thinking")  # types of content parts
_OF = {  # keys allowed in a speaker's message in addition to role, content and weight
    "system": ("name",),
    "user": ("name",),
    "assistant": ("name", *_CALLS, *thinking.KEYS),
    "tool": ("name", "tool_call_id"),
}


@dataclass(frozen=True)
class Message:
    """A message. `weight` is its weight in the loss in the file, None without one; `where` is its place in the line."""

    role: str
    content: str
    where: str
    weight: float | None = None
    thoughts: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    name: str = ""
    call_id: str = ""

    def for_template(self) -> dict[str, Any]:
        """The message for chat templates."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        named = {
            "name": self.name,
            "reasoning_content": self.thoughts,
            "tool_calls": list(self.calls),
            "tool_call_id": self.call_id,
        }
        return made | {key: value for key, value in named.items() if value}


@dataclass(frozen=True)
class _Content:
    text: str = ""
    thoughts: str = ""
    calls: tuple[dict[str, Any], ...] = ()


def read_message(message: Any, where: str) -> tuple[Message | None, list[Finding]]:
    """The message, or None and its faults."""
    if not isinstance(message, dict):
        return None, [Finding(where, "type", f"is {kind(message)}: expected an object")]
    role_key = "from" if "from" in message else "role"
    usual, other = ("value", "content") if role_key == "from" else ("content", "value")
    text_key = other if other in message and usual not in message else usual
    findings = text_findings(message, role_key, f"{where}.{role_key}")
    if findings:
        return None, findings
    speaker = message[role_key].strip().lower()
    if speaker not in SPEAKERS and speaker not in _CALLERS:
        what = f"is {speaker[:40]!r}: expected one of {', '.join([*SPEAKERS, *_CALLERS])}"
        return None, [Finding(f"{where}.{role_key}", "speaker", what)]
    role = SPEAKERS.get(speaker, "assistant")
    weight, wrong = keys.weight(message, where)
    wrong = wrong or keys.findings(message, (role_key, text_key, *keys.LEARNED, *_OF[role]), where)
    if wrong:
        return None, wrong
    if speaker in _CALLERS:
        calls, findings = read_calls(message.get(text_key), f"{where}.{text_key}")
        made = Message(role, "", where, weight, calls=tuple(calls))
        return (None, findings) if findings else (made, [])
    content, findings = _content(message, text_key, where, role)
    calls, wrong = _calls(message, where)
    thoughts, odd = _thoughts(message, content, where)
    named = [_text(message, key, where) for key in ("name", "tool_call_id")]
    findings = findings or wrong or odd or [finding for _, found in named for finding in found]
    if not findings and not content.text.strip() and role != "system" and not (calls or content.calls):
        findings = text_findings({text_key: content.text}, text_key, f"{where}.{text_key}")
    if findings:
        return None, findings
    every = (*content.calls, *calls)
    (name, _), (call_id, _) = named
    return Message(role, content.text, where, weight, thoughts, every, name, call_id), []


def _content(message: dict[str, Any], key: str, where: str, role: str) -> tuple[_Content, list[Finding]]:
    """A message's text. OpenAI's content parts are joined; a list may also contain thinking and tool calls."""
    value, place = message.get(key), f"{where}.{key}"
    if value is None and role == "assistant" and any(message.get(name) for name in _CALLS):
        return _Content(), []
    if not isinstance(value, list):
        if isinstance(value, str):
            return _Content(value), []
        return _Content(), text_findings(message, key, place)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, part in enumerate(value):
        said = part.get("type") if isinstance(part, dict) else None
        if said == "tool_call" and role == "assistant":
            found, findings = read_calls(part.get("tool_call", part.get("value")), f"{place}[{index}]")
            if findings:
                return _Content(), findings
            calls += found
            continue
        text = next((part[name] for name in (said, "text", "value") if name in part), None) if said else None
        known = said == "text" or (said in _THOUGHTS and role == "assistant")
        if not known or not isinstance(text, str):
            named = f" (a part of type {said!r:.40})" if said and not known else ""
            return _Content(), [Finding(place, "type", f"holds more than text{named}, which cannot be learned here")]
        (texts if said == "text" else thoughts).append(text)
    return _Content("\n".join(texts), "\n".join(thoughts), tuple(calls)), []


def _calls(message: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The assistant's tool calls: `tool_calls`, or OpenAI's earlier `function_call`."""
    given = [key for key in _CALLS if not keys.is_empty(message.get(key))]
    if len(given) > 1:
        return [], [Finding(where, "ambiguous", f"holds both {given[0]} and {given[1]}: leave one out")]
    return read_calls(message[given[0]], f"{where}.{given[0]}") if given else ([], [])


def _thoughts(message: dict[str, Any], content: _Content, where: str) -> tuple[str, list[Finding]]:
    """The thinking of a message, under one of its usual keys or as a content part."""
    found = {"content": content.thoughts} if content.thoughts.strip() else {}
    for key in thinking.KEYS:
        if not keys.is_empty(message.get(key)):
            if not isinstance(message[key], str):
                return "", [Finding(f"{where}.{key}", "type", f"is {kind(message[key])}: expected text")]
            found[key] = message[key]
    if len(set(found.values())) > 1 or (found and thinking.split_thinking(content.text)[0]):
        what = f"holds two thinking parts ({', '.join(found)}{' and in the content' if len(found) < 2 else ''})"
        return "", [Finding(where, "ambiguous", f"{what}: leave one out")]
    return next(iter(found.values()), ""), []


def _text(message: dict[str, Any], key: str, where: str) -> tuple[str, list[Finding]]:
    value = message.get(key)
    if value is None or isinstance(value, str):
        return (value or "").strip(), []
    return "", [Finding(f"{where}.{key}", "type", f"is {kind(value)}: expected text")]
