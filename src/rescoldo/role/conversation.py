"""Conversations in the usual formats: OpenAI's, ShareGPT's, Alpaca's, and a prompt with its completion (TRL's, as texts
or as messages).

A record in any of these formats becomes a `Conversation`: messages for chat templates, which of them are learned, and
the tools. Every answer of the assistant is learned unless its weight is 0, as in OpenAI's and LLaMA-Factory's trainers;
in a prompt that is a list of messages none is learned, as in TRL. Messages after the last learned answer are dropped,
so the record's question (`prompt`) and `answer`, which are evaluated, are at the end of the remaining conversation.
Texts stay unchanged, white space included.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rescoldo.role import keys
from rescoldo.role.fault import Finding, kind, text_findings
from rescoldo.role.message import SPEAKERS, Message, read_message
from rescoldo.role.thinking import split_thinking
from rescoldo.role.tools import call_text, number_calls, read_tools

FORMATS = {"messages": "OpenAI", "conversations": "ShareGPT", "instruction": "Alpaca", "prompt": "prompt/completion"}
LISTED = ("messages", "conversations")
COMPLETIONS = ("completion", "response", "output", "answer")
TOOLS = ("tools", "functions")  # keys of a line
_READ = {  # the keys of each format
    "messages": ("messages", "system", *TOOLS),
    "conversations": ("conversations", "system", *TOOLS),
    "instruction": ("instruction", "input", "context", "history", "system", *TOOLS, *COMPLETIONS),
    "prompt": ("prompt", "history", "system", *TOOLS, *COMPLETIONS),
}
_REPEATED = ("prompt", "instruction", "input", "question", *COMPLETIONS)  # may repeat what the messages say
OTHERS = {
    "chosen": "a preference pair: train with --objective dpo or another one for preferences",
    "preferred_output": "a preference pair: train with --objective dpo or another one for preferences",
    "chosen_messages": "a preference pair: train with --objective dpo or another one for preferences",
    "segments": "axolotl's segments of text, which cannot be learned here",
    "text": "plain text without a question: all lines of a file must be plain text, or none",
}


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn.

    Attributes:
        messages: {role, content} each; an assistant's may have `reasoning_content` and `tool_calls`, a tool's has
            `tool_call_id`; `name` if one is given.
        learned: indices of the messages that are learned, in order; all of them are the assistant's.
        tools: definitions of the tools that the assistant may call.
    """

    messages: tuple[dict[str, Any], ...]
    learned: tuple[int, ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def may_call(self) -> bool:
        """Whether there are tools or tool calls."""
        return bool(self.tools) or any("tool_calls" in message for message in self.messages)


class Turns(list[dict[str, Any]]):
    """The messages before an answer, with their tools: a type that cannot come from a file."""

    def __init__(self, messages: Sequence[dict[str, Any]] = (), tools: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(messages)
        self.tools = list(tools)


class Asked(Turns):
    """The messages before an answer, together with the whole conversation."""

    def __init__(self, whole: Conversation, asked: Sequence[dict[str, Any]]) -> None:
        super().__init__(asked, whole.tools)
        self.whole = whole


def convert(record: dict[str, Any], answers: bool, known: Collection[str] = ()) -> tuple[dict[str, Any], list[Finding]]:
    """Convert a record to a conversation.

    Args:
        answers: whether an answer to learn is required.
        known: keys that the role itself uses.

    Returns:
        The record with `turns`, `prompt` and, if it has one, `answer` added, and [];
        or the unchanged record, and its faults.
    """
    if isinstance(record.get("turns"), Asked):
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
    if not findings:
        turns, findings = _numbered(turns)
    learned = [place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.weight != 0]
    tools, wrong = _tools(record)
    findings = findings or wrong or _weights(turns, learned, answers)
    if findings:
        return record, findings
    if turns[-1].role == "assistant":
        turns = turns[: learned[-1] + 1] if learned else turns[:-1]
    said = [turn.for_template() for turn in turns]
    whole = Conversation(tuple(said), tuple(learned), tuple(tools))
    answer = {"answer": _answer(turns.pop())} if turns[-1].role == "assistant" else {}
    asked = Asked(whole, said[: len(turns)])
    plain = {key: value for key, value in record.items() if key != "answer"}
    question = next(turn for turn in reversed(turns) if turn.role != "assistant")
    return {**plain, "turns": asked, "prompt": question.content, **answer}, []


def _answer(turn: Message) -> str:
    """The text that is compared with a model's answer: the content without thinking, and the tool calls."""
    text = split_thinking(turn.content)[1]
    return "\n".join([*([text] if text.strip() else []), call_text(list(turn.calls))]) if turn.calls else text


def recognized(record: dict[str, Any]) -> str:
    """The format of a record that does not fit the role, as text; "" if it is unknown."""
    for name in LISTED:
        if isinstance(record.get(name), list):
            return f"a conversation ({FORMATS[name]}'s `{name}`)"
    for name in ("instruction", "prompt"):
        answer = next((key for key in COMPLETIONS if key in record), None)
        if name in record and answer:
            return f"a question and its answer (`{name}` and `{answer}`)"
    return ""


def mend(record: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A copy without the assistant's messages before the first question, and (field, what) of that change."""
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
    other = next((what for key, what in OTHERS.items() if key in record), None)
    if other is not None:
        return f"is {other}"
    known = ", ".join(f"{key} ({what})" for key, what in FORMATS.items())
    return f"is in no known format: expected one of {known}"


def _speaker(message: Any) -> str:
    """system, user, assistant or tool; "" for any other, or if the message names none."""
    named = message.get("from", message.get("role")) if isinstance(message, dict) else None
    return SPEAKERS.get(named.strip().lower(), "") if isinstance(named, str) else ""


def _ambiguous(record: dict[str, Any]) -> list[Finding]:
    """Faults of a line that could be read as two examples, of which only one would be learned."""
    lists = [key for key in LISTED if key in record]
    answers = [key for key in COMPLETIONS if record.get(key) is not None]
    several = lists if len(lists) > 1 or not answers else [] if lists else answers
    if len(several) < 2:
        return []
    return [Finding("", "ambiguous", f"holds both {several[0]} and {several[1]}: leave out what is not to be learned")]


def _beside(record: dict[str, Any], name: str, turns: list[Message], known: Collection[str]) -> list[Finding]:
    """Faults in the line's other keys. A text that only repeats a message is not a fault."""
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
    text = record.get("text")  # the whole example, rendered by its publisher
    if isinstance(text, str) and all(one in text for one in said):
        read.add("text")
    return keys.findings(record, read)


def _weights(turns: list[Message], learned: list[int], answers: bool) -> list[Finding]:
    """Faults in the messages' weights: only answers can be learned, and at least one must be."""
    for turn in turns:
        if turn.weight == 1 and turn.role != "assistant":
            return [Finding(turn.where, "meaning", f"has a weight, but is the {turn.role}'s: only answers are learned")]
    if answers and not learned:
        what = "is not learned (its weight is 0), and no other message of the line is: expected at least one"
        return [Finding(turns[-1].where, "meaning", what)]
    return []


def _tools(record: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The tools of a line, under `tools` or OpenAI's earlier key `functions`."""
    given = [key for key in TOOLS if not keys.is_empty(record.get(key))]
    if len(given) > 1:
        return [], [Finding("", "ambiguous", "holds both tools and functions: leave one out")]
    return read_tools(record[given[0]], given[0]) if given else ([], [])


def _listed(value: Any, name: str) -> tuple[list[Message], list[Finding]]:
    """Read a list of messages."""
    if not isinstance(value, list):
        return [], [Finding(name, "type", f"is {kind(value)}: expected a list of messages")]
    if not value:
        return [], [Finding(name, "empty", "is empty")]
    turns: list[Message] = []
    for index, message in enumerate(value):
        turn, findings = read_message(message, f"{name}[{index}]")
        if turn is None:
            return [], findings
        turns.append(turn)
    return turns, []


def _numbered(turns: list[Message]) -> tuple[list[Message], list[Finding]]:
    """The messages with an id for each call; a result without an id gets that of the next unanswered call."""
    done: list[Message] = []
    waiting: list[str] = []
    for place, turn in enumerate(turns):
        if turn.role == "assistant":
            calls = number_calls(list(turn.calls), place)
            waiting = [call["id"] for call in calls]
            done.append(replace(turn, calls=tuple(calls)))
        elif turn.role == "tool":
            if turn.call_id and turn.call_id not in waiting:
                what = f"is {turn.call_id[:40]!r}, which is not the id of a call in the assistant's message before it"
                return [], [Finding(f"{turn.where}.tool_call_id", "tools", what)]
            call_id = turn.call_id or next(iter(waiting), "")
            waiting = [one for one in waiting if one != call_id]
            done.append(replace(turn, call_id=call_id))
        else:
            done.append(turn)
    return done, []


def _alpaca(record: dict[str, Any]) -> tuple[list[Message], list[Finding]]:
    """{instruction, input, output}; the input may be missing or empty, or called context (as in Dolly)."""
    findings = text_findings(record, "instruction")
    parts = [record.get("instruction")]
    for name in ("input", "context"):
        if not isinstance(record.get(name), str | None):
            findings.append(Finding(name, "type", f"is {kind(record[name])}: expected text"))
        elif (record.get(name) or "").strip():
            parts.append(record[name])
    if len(parts) > 2:
        findings.append(Finding("", "ambiguous", "holds both input and context: leave out what is not to be learned"))
    if findings:
        return [], findings
    return _pair(record, "instruction", "\n\n".join(map(str, parts)), "output")


def _completion(record: dict[str, Any]) -> tuple[list[Message], list[Finding]]:
    """{prompt, completion}; the completion may also be called response, output or answer. Also TRL's lists of
    messages."""
    if isinstance(record["prompt"], list):
        return _messages_and_completion(record)
    findings = text_findings(record, "prompt")
    if findings:
        return [], findings
    return _pair(record, "prompt", record["prompt"], COMPLETIONS[0])


def _messages_and_completion(record: dict[str, Any]) -> tuple[list[Message], list[Finding]]:
    """TRL's conversational format: the prompt's messages, which are not learned, and the completion's, or its text."""
    asked, findings = _listed(record["prompt"], "prompt")
    turns = [replace(turn, weight=turn.weight or 0.0) if turn.role == "assistant" else turn for turn in asked]
    key = next((key for key in COMPLETIONS if record.get(key) is not None), None)
    if findings or key is None:
        return turns, findings
    if isinstance(record[key], str):
        findings = text_findings(record, key)
        return ([], findings) if findings else ([*turns, Message("assistant", record[key], key)], [])
    completion, findings = _listed(record[key], key)
    if not findings and completion[0].role != "assistant":
        findings = [Finding(key, "order", "begins with a message that is not the assistant's")]
    return ([], findings) if findings else ([*turns, *completion], [])


def _pair(record: dict[str, Any], asked: str, question: str, usual: str) -> tuple[list[Message], list[Finding]]:
    """The earlier turns, the question under the key `asked`, and the answer under any of COMPLETIONS; `usual` is the
    key for messages."""
    turns, findings = _history(record)
    if findings:
        return [], findings
    turns.append(Message("user", question, asked))
    key = next((key for key in COMPLETIONS if record.get(key) is not None), usual)
    if key in record:
        findings = text_findings(record, key)
        if findings:
            return [], findings
        turns.append(Message("assistant", record[key], key))
    return turns, []


def _history(record: dict[str, Any]) -> tuple[list[Message], list[Finding]]:
    """The earlier turns in LLaMA-Factory's `history`: pairs of a question and its answer."""
    value = record.get("history") or []
    if not isinstance(value, list):
        return [], [Finding("history", "type", f"is {kind(value)}: expected a list of [question, answer]")]
    turns: list[Message] = []
    for index, pair in enumerate(value):
        where = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            return [], [Finding(where, "type", f"is {kind(pair)}: expected [question, answer]")]
        for place, speaker in enumerate(("user", "assistant")):
            findings = text_findings({where: pair[place]}, where, f"{where}[{place}]")
            if findings:
                return [], findings
            turns.append(Message(speaker, pair[place], f"{where}[{place}]"))
    return turns, []


def _with_system(turns: list[Message], record: dict[str, Any], name: str) -> tuple[list[Message], list[Finding]]:
    """The turns after the line's own `system` message, if it has one."""
    if not record.get("system"):
        return turns, []
    findings = text_findings(record, "system")
    if findings:
        return [], findings
    if turns[0].role != "system":
        return [Message("system", record["system"], "system"), *turns], []
    if turns[0].content.strip() == record["system"].strip():
        return turns, []
    return [], [Finding("system", "ambiguous", f"differs from the system message in {name}[0]: leave one out")]


_NEXT = {  # which speakers may follow; an assistant that calls tools is a case of its own
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calls": ("tool",),
    "tool": ("assistant", "tool"),
}


def _order(turns: list[Message], name: str, answers: bool) -> list[Finding]:
    """Check the order: an optional system message; then user and assistant alternate, beginning with the user; tool
    results follow the message that calls them; an answer is last."""
    speakers = [turn.role for turn in turns]
    first = 1 if speakers[0] == "system" else 0
    before = ""
    for index, turn in enumerate(turns[first:]):
        wanted = _NEXT[before]
        if turn.role not in wanted:
            what = f"is the {turn.role}'s: expected the {wanted[0]}'s (they take turns, the user begins)"
            if before == "calls":
                what = f"is the {turn.role}'s: expected the result of the tool call before it"
            elif turn.role == "tool":
                what = "is a tool result without a tool call before it"
            fixable = name in LISTED and index == 0 and speakers[first : first + 2] == ["assistant", "user"]
            return [Finding(turn.where, "order", what, fixable)]
        before = "calls" if turn.calls else turn.role
    if len(speakers) == first:
        return [Finding(name, "order", "holds no question")]
    if answers and speakers[-1] != "assistant":
        if name in LISTED:
            whose = "the result of a tool" if speakers[-1] == "tool" else "the user's message"
            return [Finding(name, "no-answer", f"ends with {whose}: there is no answer to learn")]
        return [Finding("output" if name == "instruction" else COMPLETIONS[0], "missing", "is missing")]
    return []
