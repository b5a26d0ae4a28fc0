"""Conversations in the formats that people have: OpenAI's, ShareGPT's, Alpaca's, and a prompt with its completion.

Whatever the format, a record becomes the messages up to the last answer (`turns`), the last question (`prompt`) and
that answer (`answer`). Only the last answer of a conversation is learned; the earlier ones are part of its prompt.
"""

from __future__ import annotations

from typing import Any

from rescoldo.role.fault import Finding, kind, text_findings

Turns = list[dict[str, str]]
FORMATS = {"messages": "OpenAI", "conversations": "ShareGPT", "instruction": "Alpaca", "prompt": "prompt/completion"}
LISTED = ("messages", "conversations")
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
    findings = _ambiguous(record)
    if findings:
        return record, findings
    if name in LISTED:
        turns, findings = _listed(record[name], name)
    elif name == "instruction":
        turns, findings = _alpaca(record)
    else:
        turns, findings = _completion(record)
    findings = findings or _order(turns, name, answers)
    if not findings:
        turns, findings = _with_system(turns, record, name)
    if findings:
        return record, findings
    answer = {"answer": turns.pop()["content"]} if turns[-1]["role"] == "assistant" else {}
    plain = {key: value for key, value in record.items() if key != "answer"}
    return {**plain, "turns": turns, "prompt": turns[-1]["content"], **answer}, []


def mend(record: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A copy without what the assistant says before the first question, and (field, what) of that change."""
    name = next((key for key in LISTED if key in record), "")
    messages = record.get(name)
    if not isinstance(messages, list):
        return record, []
    speakers = [_speaker(message) for message in messages]
    first = 1 if speakers[:1] == ["system"] else 0
    if speakers[first : first + 2] != ["assistant", "user"]:
        return record, []
    rest = {**record, name: messages[:first] + messages[first + 1 :]}
    return rest, [(f"{name}[{first}]", "left out: the assistant's words before the first question")]


def _speaker(message: Any) -> str:
    """system, user or assistant; "" for any other, or where none is named."""
    named = message.get("from", message.get("role")) if isinstance(message, dict) else None
    return _SPEAKERS.get(named.strip().lower(), "") if isinstance(named, str) else ""


def _ambiguous(record: dict[str, Any]) -> list[Finding]:
    """Why a line could be read as two examples, of which only one would be learned."""
    lists = [key for key in LISTED if key in record]
    questions = [key for key in ("instruction", "prompt") if key in record]
    answers = [key for key in COMPLETIONS if record.get(key) is not None]
    if lists and questions and answers:
        lists.append(f"{questions[0]}/{answers[0]}")
    several = lists or answers
    if len(several) < 2:
        return []
    return [Finding("", "ambiguous", f"holds both {several[0]} and {several[1]}: leave out what is not to be learned")]


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
    """{instruction, input, output}; the input may be missing or empty, or be called context (Dolly's)."""
    findings = text_findings(record, "instruction")
    parts = [record.get("instruction")]
    for name in ("input", "context"):
        if not isinstance(record.get(name), str | None):
            findings.append(Finding(name, "type", f"is {kind(record[name])}, text is wanted"))
        elif (record.get(name) or "").strip():
            parts.append(record[name])
    if len(parts) > 2:
        findings.append(Finding("", "ambiguous", "holds both input and context: leave out what is not to be learned"))
    if findings:
        return [], findings
    return _pair(record, "\n\n".join(str(part).strip() for part in parts), "output")


def _completion(record: dict[str, Any]) -> tuple[Turns, list[Finding]]:
    """{prompt, completion}; the completion may also be called response, output or answer."""
    findings = text_findings(record, "prompt")
    if findings:
        return [], findings
    return _pair(record, record["prompt"].strip(), COMPLETIONS[0])


def _pair(record: dict[str, Any], question: str, usual: str) -> tuple[Turns, list[Finding]]:
    """What was said before, the question, and the answer, whichever of COMPLETIONS it is called. `usual`: its name."""
    turns, findings = _history(record)
    if findings:
        return [], findings
    turns.append({"role": "user", "content": question})
    key = next((key for key in COMPLETIONS if record.get(key) is not None), usual)
    if key in record:
        findings = text_findings(record, key)
        if findings:
            return [], findings
        turns.append({"role": "assistant", "content": record[key].strip()})
    return turns, []


def _history(record: dict[str, Any]) -> tuple[Turns, list[Finding]]:
    """The earlier turns in LLaMA-Factory's `history`: pairs of a question and its answer."""
    value = record.get("history") or []
    if not isinstance(value, list):
        return [], [Finding("history", "type", f"is {kind(value)}, a list of [question, answer] is wanted")]
    turns: Turns = []
    for index, pair in enumerate(value):
        where = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            return [], [Finding(where, "type", f"is {kind(pair)}, [question, answer] is wanted")]
        for place, speaker in enumerate(("user", "assistant")):
            findings = text_findings({where: pair[place]}, where, f"{where}[{place}]")
            if findings:
                return [], findings
            turns.append({"role": speaker, "content": pair[place].strip()})
    return turns, []


def _with_system(turns: Turns, record: dict[str, Any], name: str) -> tuple[Turns, list[Finding]]:
    """The turns behind the line's own `system`, where it has one."""
    if not record.get("system"):
        return turns, []
    findings = text_findings(record, "system")
    if findings:
        return [], findings
    system = {"role": "system", "content": record["system"].strip()}
    if turns[0]["role"] != "system":
        return [system, *turns], []
    if turns[0] == system:
        return turns, []
    return [], [Finding("system", "ambiguous", f"is another than the system message in {name}[0]: leave one out")]


def _order(turns: Turns, name: str, answers: bool) -> list[Finding]:
    """A system message first, if any; then user and assistant in turns, the user first; an answer at the end."""
    speakers = [turn["role"] for turn in turns]
    first = 1 if speakers[0] == "system" else 0
    for index, speaker in enumerate(speakers[first:]):
        wanted = ("user", "assistant")[index % 2]
        if speaker != wanted:
            what = f"is the {speaker}'s, the {wanted}'s is wanted: they take turns, the user begins"
            fixable = index == 0 and speakers[first : first + 2] == ["assistant", "user"]
            return [Finding(f"{name}[{first + index}]", "order", what, fixable)]
    if len(speakers) == first:
        return [Finding(name, "order", "holds no question")]
    if answers and speakers[-1] != "assistant":
        if name in LISTED:
            return [Finding(name, "no-answer", "ends with the user's message: there is no answer to learn")]
        return [Finding("output" if name == "instruction" else COMPLETIONS[0], "missing", "is missing")]
    return []
