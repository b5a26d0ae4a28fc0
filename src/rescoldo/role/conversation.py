"""Conversations in the formats that people have: OpenAI's, ShareGPT's, Alpaca's, and a prompt with its completion
(TRL's, as texts or as messages).

Whatever the format, a record becomes the messages up to the last answer (`turns`), the last question (`prompt`) and
that answer (`answer`). Only the last answer of a conversation is learned; the earlier ones are part of its prompt.
Texts stay as they are, white space included.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rescoldo.role import keys
from rescoldo.role.fault import Finding, kind, text_findings

FORMATS = {"messages": "OpenAI", "conversations": "ShareGPT", "instruction": "Alpaca", "prompt": "prompt/completion"}
LISTED = ("messages", "conversations")
COMPLETIONS = ("completion", "response", "output", "answer")
_READ = {  # the keys of each format
    "messages": ("messages", "system"),
    "conversations": ("conversations", "system"),
    "instruction": ("instruction", "input", "context", "history", "system", *COMPLETIONS),
    "prompt": ("prompt", "history", "system", *COMPLETIONS),
}
_REPEATED = ("prompt", "instruction", "input", "question", *COMPLETIONS)  # may stand beside messages that say the same
_OTHERS = {
    "chosen": "a preference pair: train with --objective dpo, orpo or kto",
    "preferred_output": "a preference pair: train with --objective dpo, orpo or kto",
    "chosen_messages": "a preference pair: train with --objective dpo, orpo or kto",
    "segments": "axolotl's segments of text, which cannot be learned here",
    "text": "plain text without a question, which cannot be learned here yet",
}
_SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
_TOOLS = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")


class Turns(list[dict[str, str]]):
    """The turns of a record that is converted: a type that no file can contain."""


@dataclass(frozen=True)
class _Turn:
    """A message: its `weight` in the loss as the file says it, None where it does not; `where` it stands."""

    role: str
    content: str
    where: str
    weight: float | None = None


def convert(record: dict[str, Any], answers: bool, known: Collection[str] = ()) -> tuple[dict[str, Any], list[Finding]]:
    """A record as a conversation.

    Args:
        answers: whether there must be an answer to learn.
        known: keys that the role itself uses.

    Returns:
        The record with `turns`, `prompt` and, where there is one, `answer` added, and [];
        or the record as it was, and what is wrong with it.
    """
    if isinstance(record.get("turns"), Turns):
        return record, []
    name = next((key for key in FORMATS if key in record), None)
    if name is None:
        return record, [Finding("", "format", _no_format(record))]
    findings = _ambiguous(record)
    if findings:
        return record, findings
    if name in LISTED:
        turns, findings = _listed(record[name], name)
    elif name == "instruction":
        turns, findings = _alpaca(record)
    else:
        turns, findings = _completion(record)
    findings = findings or _beside(record, name, turns, known) or _order(turns, name, answers)
    if not findings:
        turns, findings = _with_system(turns, record, name)
    findings = findings or _weights(turns)
    if findings:
        return record, findings
    answer = {"answer": turns.pop().content} if turns[-1].role == "assistant" else {}
    said = Turns({"role": turn.role, "content": turn.content} for turn in turns)
    plain = {key: value for key, value in record.items() if key != "answer"}
    return {**plain, "turns": said, "prompt": turns[-1].content, **answer}, []


def recognized(record: dict[str, Any]) -> str:
    """What a record that is no conversation of the role's looks like, in words; "" if like nothing that is known."""
    for name in LISTED:
        if isinstance(record.get(name), list):
            return f"a conversation ({FORMATS[name]}'s `{name}`)"
    for name in ("instruction", "prompt"):
        answer = next((key for key in COMPLETIONS if key in record), None)
        if name in record and answer:
            return f"a question and its answer (`{name}` and `{answer}`)"
    return ""


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


def _no_format(record: dict[str, Any]) -> str:
    other = next((what for key, what in _OTHERS.items() if key in record), None)
    if other is not None:
        return f"is {other}"
    known = ", ".join(f"{key} ({what})" for key, what in FORMATS.items())
    return f"is in no format that is known here: it has none of {known}"


def _speaker(message: Any) -> str:
    """system, user or assistant; "" for any other, or where none is named."""
    named = message.get("from", message.get("role")) if isinstance(message, dict) else None
    return _SPEAKERS.get(named.strip().lower(), "") if isinstance(named, str) else ""


def _ambiguous(record: dict[str, Any]) -> list[Finding]:
    """Why a line could be read as two examples, of which only one would be learned."""
    lists = [key for key in LISTED if key in record]
    answers = [key for key in COMPLETIONS if record.get(key) is not None]
    several = lists if len(lists) > 1 or not answers else [] if lists else answers
    if len(several) < 2:
        return []
    return [Finding("", "ambiguous", f"holds both {several[0]} and {several[1]}: leave out what is not to be learned")]


def _beside(record: dict[str, Any], name: str, turns: list[_Turn], known: Collection[str]) -> list[Finding]:
    """What is wrong with the line's other keys. A text that repeats a message is none."""
    said = {turn.content.strip() for turn in turns}
    read = {*_READ[name], *known}
    for key in _REPEATED:
        value = record.get(key)
        if key in read or keys.is_empty(value):
            continue
        if not isinstance(value, str) or value.strip() not in said:
            what = f"holds both {name} and {key}: leave out what is not to be learned"
            return [Finding("", "ambiguous", what)]
        read.add(key)
    text = record.get("text")  # the whole example, as its publisher has rendered it
    if isinstance(text, str) and all(one in text for one in said):
        read.add("text")
    return keys.findings(record, read)


def _weights(turns: list[_Turn]) -> list[Finding]:
    """What is said of the messages' weights that cannot be done: the last answer is learned, and nothing else is."""
    last = turns[-1]
    for turn in turns:
        if turn.weight == 1 and turn.role != "assistant":
            return [Finding(turn.where, "meaning", f"is to be learned, and is the {turn.role}'s: answers are learned")]
    if last.role == "assistant" and last.weight == 0:
        what = "is not to be learned (its weight is 0), and the last answer is the one that is learned here"
        return [Finding(last.where, "meaning", what)]
    return []


def _listed(value: Any, name: str) -> tuple[list[_Turn], list[Finding]]:
    """OpenAI's {role, content} and ShareGPT's {from, value}, each also under the other's name."""
    if not isinstance(value, list):
        return [], [Finding(name, "type", f"is {kind(value)}, a list of messages is wanted")]
    if not value:
        return [], [Finding(name, "empty", "is empty")]
    turns: list[_Turn] = []
    for index, message in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(message, dict):
            return [], [Finding(where, "type", f"is {kind(message)}, an object is wanted")]
        role_key = "from" if "from" in message else "role"
        usual, other = ("value", "content") if role_key == "from" else ("content", "value")
        text_key = other if other in message and usual not in message else usual
        findings = text_findings(message, role_key, f"{where}.{role_key}")
        if findings:
            return [], findings
        speaker = message[role_key].strip().lower()
        if speaker in _TOOLS or message.get("tool_calls") or message.get("function_call"):
            return [], [Finding(where, "tools", "is a call of a tool or its result: tools cannot be learned here")]
        if speaker not in _SPEAKERS:
            what = f"is {speaker[:40]!r}, one of {', '.join(_SPEAKERS)} is wanted"
            return [], [Finding(f"{where}.{role_key}", "speaker", what)]
        text, findings = _content(message, text_key, f"{where}.{text_key}", may_be_empty=_SPEAKERS[speaker] == "system")
        weight, wrong = keys.weight(message, where)
        findings = findings or wrong or keys.findings(message, (role_key, text_key, *keys.LEARNED), where)
        if findings:
            return [], findings
        turns.append(_Turn(_SPEAKERS[speaker], text, where, weight))
    return turns, []


def _content(message: dict[str, Any], key: str, where: str, *, may_be_empty: bool) -> tuple[str, list[Finding]]:
    """A message's text; OpenAI's list of text parts is put together. Of a system message it may be empty."""
    value = message.get(key)
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part.get("text", part.get("value")) for part in parts]
        if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
            return "", [Finding(where, "type", "holds other things than text, which cannot be learned here")]
        message = {key: "\n".join(map(str, texts))}
    if may_be_empty and isinstance(message.get(key), str):
        return message[key], []
    findings = text_findings(message, key, where)
    return ("", findings) if findings else (message[key], [])


def _alpaca(record: dict[str, Any]) -> tuple[list[_Turn], list[Finding]]:
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
    return _pair(record, "instruction", "\n\n".join(map(str, parts)), "output")


def _completion(record: dict[str, Any]) -> tuple[list[_Turn], list[Finding]]:
    """{prompt, completion}; the completion may also be called response, output or answer. TRL's lists of messages."""
    if isinstance(record["prompt"], list):
        return _messages_and_completion(record)
    findings = text_findings(record, "prompt")
    if findings:
        return [], findings
    return _pair(record, "prompt", record["prompt"], COMPLETIONS[0])


def _messages_and_completion(record: dict[str, Any]) -> tuple[list[_Turn], list[Finding]]:
    """TRL's conversational form: the prompt's messages, and the completion's, which is one answer (or a text)."""
    turns, findings = _listed(record["prompt"], "prompt")
    key = next((key for key in COMPLETIONS if record.get(key) is not None), None)
    if findings or key is None:
        return turns, findings
    if isinstance(record[key], str):
        findings = text_findings(record, key)
        return ([], findings) if findings else ([*turns, _Turn("assistant", record[key], key)], [])
    completion, findings = _listed(record[key], key)
    if not findings and [turn.role for turn in completion] != ["assistant"]:
        findings = [Finding(key, "order", "is not one message of the assistant's: only one answer is learned here")]
    return ([], findings) if findings else ([*turns, *completion], [])


def _pair(record: dict[str, Any], asked: str, question: str, usual: str) -> tuple[list[_Turn], list[Finding]]:
    """What was said before, the question, which stands under `asked`, and the answer, whichever of COMPLETIONS it is
    called. `usual`: its name."""
    turns, findings = _history(record)
    if findings:
        return [], findings
    turns.append(_Turn("user", question, asked))
    key = next((key for key in COMPLETIONS if record.get(key) is not None), usual)
    if key in record:
        findings = text_findings(record, key)
        if findings:
            return [], findings
        turns.append(_Turn("assistant", record[key], key))
    return turns, []


def _history(record: dict[str, Any]) -> tuple[list[_Turn], list[Finding]]:
    """The earlier turns in LLaMA-Factory's `history`: pairs of a question and its answer."""
    value = record.get("history") or []
    if not isinstance(value, list):
        return [], [Finding("history", "type", f"is {kind(value)}, a list of [question, answer] is wanted")]
    turns: list[_Turn] = []
    for index, pair in enumerate(value):
        where = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            return [], [Finding(where, "type", f"is {kind(pair)}, [question, answer] is wanted")]
        for place, speaker in enumerate(("user", "assistant")):
            findings = text_findings({where: pair[place]}, where, f"{where}[{place}]")
            if findings:
                return [], findings
            turns.append(_Turn(speaker, pair[place], f"{where}[{place}]"))
    return turns, []


def _with_system(turns: list[_Turn], record: dict[str, Any], name: str) -> tuple[list[_Turn], list[Finding]]:
    """The turns behind the line's own `system`, where it has one."""
    if not record.get("system"):
        return turns, []
    findings = text_findings(record, "system")
    if findings:
        return [], findings
    if turns[0].role != "system":
        return [_Turn("system", record["system"], "system"), *turns], []
    if turns[0].content.strip() == record["system"].strip():
        return turns, []
    return [], [Finding("system", "ambiguous", f"is another than the system message in {name}[0]: leave one out")]


def _order(turns: list[_Turn], name: str, answers: bool) -> list[Finding]:
    """A system message first, if any; then user and assistant in turns, the user first; an answer at the end."""
    speakers = [turn.role for turn in turns]
    first = 1 if speakers[0] == "system" else 0
    for index, speaker in enumerate(speakers[first:]):
        wanted = ("user", "assistant")[index % 2]
        if speaker != wanted:
            what = f"is the {speaker}'s, the {wanted}'s is wanted: they take turns, the user begins"
            fixable = name in LISTED and index == 0 and speakers[first : first + 2] == ["assistant", "user"]
            return [Finding(turns[first + index].where, "order", what, fixable)]
    if len(speakers) == first:
        return [Finding(name, "order", "holds no question")]
    if answers and speakers[-1] != "assistant":
        if name in LISTED:
            return [Finding(name, "no-answer", "ends with the user's message: there is no answer to learn")]
        return [Finding("output" if name == "instruction" else COMPLETIONS[0], "missing", "is missing")]
    return []
