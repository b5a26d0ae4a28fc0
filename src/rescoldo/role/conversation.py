"""Conversations in the formats that people have: OpenAI's, ShareGPT's, Alpaca's, and a prompt with its completion.

Whatever the format, a record becomes the messages up to the last answer (`turns`), the last question (`prompt`) and
that answer (`answer`). Only the last answer of a conversation is learned; the earlier ones are part of its prompt.
"""

from __future__ import annotations

from typing import Any

from rescoldo.role.fault import Finding, kind, text_findings

Turns = list[dict[str, str]]
FORMATS = {"messages": "OpenAI", "conversations": "ShareGPT", "instruction": "Alpaca", "prompt": "prompt/completion"}
COMPLETIONS = ("completion", "response", "output", "answer")
_SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
_TOOLS = ("tool", "function", "function_call", "observation")


def convert(record: dict[str, Any], answers: bool) -> tuple[dict[str, Any], list[Finding]]:
    """A record as a conversation.

    Args:
        answers: whether there must be an answer to learn.

    Returns:
        The record with `turns`, `prompt` and, where there is one, `answer` added, and [];
        or the record as it was, and what is wrong with it.
    """
    if "turns" in record:
        return record, []
    name = next((key for key in FORMATS if key in record), None)
    if name is None:
        known = ", ".join(f"{key} ({what})" for key, what in FORMATS.items())
        return record, [Finding("", "format", f"is in no format that is known here: it has none of {known}")]
    if name in ("messages", "conversations"):
        turns, findings = _listed(record[name], name)
    elif name == "instruction":
        turns, findings = _alpaca(record)
    else:
        turns, findings = _completion(record)
    findings = findings or _order(turns, name, answers)
    if findings:
        return record, findings
    answer = {"answer": turns.pop()["content"]} if turns[-1]["role"] == "assistant" else {}
    plain = {key: value for key, value in record.items() if key != "answer"}
    return {**plain, "turns": turns, "prompt": turns[-1]["content"], **answer}, []


def _listed(value: Any, name: str) -> tuple[Turns, list[Finding]]:
    """OpenAI's {role, content} and ShareGPT's {from, value}, each also under the other's name."""
    if not isinstance(value, list):
        return [], [Finding(name, "type", f"is {kind(value)}, a list of messages is wanted")]
    if not value:
        return [], [Finding(name, "empty", "is empty")]
    turns: Turns = []
    for index, message in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(message, dict):
            return [], [Finding(where, "type", f"is {kind(message)}, an object is wanted")]
        role_key, text_key = ("from", "value") if "from" in message else ("role", "content")
        findings = text_findings(message, role_key, f"{where}.{role_key}")
        if findings:
            return [], findings
        speaker = message[role_key].strip().lower()
        if speaker in _TOOLS or message.get("tool_calls") or message.get("function_call"):
            return [], [Finding(where, "tools", "is a call of a tool or its result: tools cannot be learned here")]
        if speaker not in _SPEAKERS:
            what = f"is {speaker[:40]!r}, one of {', '.join(_SPEAKERS)} is wanted"
            return [], [Finding(f"{where}.{role_key}", "speaker", what)]
        text, findings = _content(message, text_key, f"{where}.{text_key}")
        if findings:
            return [], findings
        turns.append({"role": _SPEAKERS[speaker], "content": text})
    return turns, []


def _content(message: dict[str, Any], key: str, where: str) -> tuple[str, list[Finding]]:
    """A message's text; OpenAI's list of text parts is put together."""
    value = message.get(key)
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
            return "", [Finding(where, "type", "holds other things than text, which cannot be learned here")]
        message = {key: "\n".join(map(str, texts))}
    findings = text_findings(message, key, where)
    return ("", findings) if findings else (message[key].strip(), [])


def _alpaca(record: dict[str, Any]) -> tuple[Turns, list[Finding]]:
    """{instruction, input, output}, and a system text where there is one; the input may be missing or empty."""
    findings = text_findings(record, "instruction")
    if not isinstance(record.get("input", ""), str | None):
        findings.append(Finding("input", "type", f"is {kind(record['input'])}, text is wanted"))
    if findings:
        return [], findings
    parts = [record["instruction"].strip(), (record.get("input") or "").strip()]
    return _pair(record, "\n\n".join(part for part in parts if part), "output")


def _completion(record: dict[str, Any]) -> tuple[Turns, list[Finding]]:
    """{prompt, completion}; the completion may also be called response, output or answer."""
    findings = text_findings(record, "prompt")
    if findings:
        return [], findings
    return _pair(record, record["prompt"].strip(), next((key for key in COMPLETIONS if key in record), COMPLETIONS[0]))


def _pair(record: dict[str, Any], question: str, key: str) -> tuple[Turns, list[Finding]]:
    turns: Turns = []
    if record.get("system"):
        findings = text_findings(record, "system")
        if findings:
            return [], findings
        turns.append({"role": "system", "content": record["system"].strip()})
    turns.append({"role": "user", "content": question})
    if key in record:
        findings = text_findings(record, key)
        if findings:
            return [], findings
        turns.append({"role": "assistant", "content": record[key].strip()})
    return turns, []


def _order(turns: Turns, name: str, answers: bool) -> list[Finding]:
    """A system message first, if any; then user and assistant in turns, the user first; an answer at the end."""
    speakers = [turn["role"] for turn in turns]
    first = 1 if speakers[0] == "system" else 0
    for index, speaker in enumerate(speakers[first:]):
        wanted = ("user", "assistant")[index % 2]
        if speaker != wanted:
            what = f"is the {speaker}'s, the {wanted}'s is wanted: they take turns, the user begins"
            return [Finding(f"{name}[{first + index}]", "order", what)]
    if len(speakers) == first:
        return [Finding(name, "order", "holds no question")]
    if answers and speakers[-1] != "assistant":
        if name in ("messages", "conversations"):
            return [Finding(name, "no-answer", "ends with the user's message: there is no answer to learn")]
        return [Finding("output" if name == "instruction" else COMPLETIONS[0], "missing", "is missing")]
    return []
