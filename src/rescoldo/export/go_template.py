"""A chat template as a template for Ollama, in Go's template language.

What the chat template writes is found out by letting it write conversations. Most templates write each message between
two fixed texts, wherever it stands: `Framed`. Others write the first system message apart, or know none: `Turns`.

Ollama gives a template .Messages (system messages among them, in place) and .System (all of them, joined).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rescoldo.data.tokenize import prompt_text
from rescoldo.errors import RescoldoError

_USER, _ANSWER, _AGAIN, _SYSTEM, _LATER = "xqzuserzqx", "xqzanswerzqx", "xqzagainzqx", "xqzsystemzqx", "xqzlaterzqx"
_U, _A, _UU = ("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)
_S, _SS = ("system", _SYSTEM), ("system", _LATER)
_CONVERSATIONS = (  # a template that writes these as `Framed` says is one
    (_U,), (_U, _A, _UU), (_S, _U), (_S, _U, _A, _UU), (_U, _A, _SS, _UU), (_S, _U, _A, _SS, _UU), (_U, _SS),
)  # fmt: skip


@dataclass(frozen=True)
class Framed:
    """A template that writes each message between two texts.

    Attributes:
        frames: role → before and behind its content.
        lead: before everything, where the first message is a system message, and where it is not.
        begin: what begins the answer.
    """

    frames: dict[str, tuple[str, str]]
    lead: tuple[str, str]
    begin: str

    def render(self, messages: tuple[tuple[str, str], ...]) -> str:
        """The prompt of a conversation of (role, content)."""
        text = "".join(content.join(self.frames[role]) for role, content in messages)
        return self.lead[messages[0][0] != "system"] + text + self.begin

    def template(self) -> str:
        """The same in Go's language."""
        roles = [
            'if eq .Role "' + role + '" }}' + _literal(before) + "{{ .Content }}" + _literal(behind)
            for role, (before, behind) in self.frames.items()
        ]
        message = "{{ " + "{{ else ".join(roles) + "{{ end }}"
        with_system, without = map(_literal, self.lead)
        if with_system == without:
            start = without
        else:
            start = "{{ $begun := false }}"
            first = '{{ else if eq .Role "system" }}' + with_system + "{{ else }}" + without
            message = "{{ if $begun }}" + first + "{{ end }}{{ $begun = true }}" + message
        return start + "{{ range .Messages }}" + message + "{{ end }}" + _literal(self.begin)


@dataclass(frozen=True)
class Turns:
    """What another template writes around the parts of a conversation. A later system message goes to the front.

    Attributes:
        head: before the first question, where there is no system message.
        system: before and behind a system message, the latter up to the first question; None: the template has none.
        tail: behind a question, up to where the answer begins.
        answer: between `tail` and an answer that is already known; between, from its end to the next question. None
            where the template writes a conversation in no way that can be put together so.
    """

    head: str
    system: tuple[str, str] | None
    tail: str
    answer: tuple[str, str] | None

    def template(self) -> str:
        """The same in Go's language. No newline or blank outside of what the model is to see."""
        head = _literal(self.head)
        if self.system:
            before, behind = map(_literal, self.system)
            head = "{{ if .System }}" + before + "{{ .System }}" + behind + "{{ else }}" + head + "{{ end }}"
        tail = _literal(self.tail)
        if self.answer is None:
            return head + "{{ .Prompt }}" + tail
        opened, between = map(_literal, self.answer)
        return (
            head
            + "{{ $asked := false }}{{ range .Messages }}"
            + '{{ if eq .Role "user" }}{{ if $asked }}'
            + between
            + "{{ end }}{{ $asked = true }}{{ .Content }}"
            + tail
            + '{{ else if eq .Role "assistant" }}'
            + opened
            + "{{ .Content }}{{ end }}{{ end }}"
        )


def go_template(tokenizer: Any) -> str:
    """The tokenizer's chat template as one for Ollama.

    Raises:
        RescoldoError: it cannot write a single question.
    """
    return read_template(tokenizer).template()


def read_template(tokenizer: Any) -> Framed | Turns:
    """Find out what the chat template writes.

    Raises:
        RescoldoError: it cannot write a single question.
    """
    bos = tokenizer.bos_token if (tokenizer("x")["input_ids"] or [None])[0] == tokenizer.bos_token_id else None

    def write(*messages: tuple[str, str]) -> str:
        text = prompt_text([{"role": role, "content": content} for role, content in messages], tokenizer) or ""
        return text.removeprefix(bos) if bos else text  # Ollama begins the sequence itself

    def finished(*messages: tuple[str, str]) -> str:
        """Without the beginning of an answer."""
        turns = [{"role": role, "content": content} for role, content in messages]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False))
        return text.removeprefix(bos) if bos else text

    try:
        framed = _framed(write, finished)
        if all(write(*messages) == framed.render(messages) for messages in _CONVERSATIONS):
            return framed
    except Exception:  # it refuses one of them (jinja2's errors are of many kinds), or writes it in another way
        pass
    return _turns(write)


def _framed(write: Any, finished: Any) -> Framed:
    """The texts around each role's content, cut out of conversations.

    Raises:
        ValueError: they cannot be.
    """
    user_close = finished(_U, _A, _UU).split(_AGAIN)[1]
    before, between, rest = re.split(f"{_USER}|{_ANSWER}", finished(_U, _A, _UU).split(_AGAIN)[0])
    answer_close = finished(_U, _A).split(_ANSWER)[1]
    answer_open, user_open = _cut(between, user_close), _cut(rest, answer_close)
    _, _, system, _ = re.split(f"{_USER}|{_ANSWER}|{_LATER}", finished(_U, _A, _SS, _UU))
    system_open = _cut(system, answer_close)
    with_system, after, _ = re.split(f"{_SYSTEM}|{_USER}", finished(_S, _U))
    frames = {
        "system": (system_open, _cut(after, behind=user_open)),
        "user": (user_open, user_close),
        "assistant": (answer_open, answer_close),
    }
    lead = _cut(with_system, behind=system_open), _cut(before, behind=user_open)
    return Framed(frames, lead, _cut(write(_U), finished(_U)))


def _cut(text: str, before: str = "", behind: str = "") -> str:
    """`text` without what it begins and ends with.

    Raises:
        ValueError: it does not.
    """
    if not text.startswith(before) or not text.endswith(behind) or len(text) < len(before) + len(behind):
        raise ValueError("another text than expected")
    return text[len(before) : len(text) - len(behind)]


def _turns(write: Any) -> Turns:
    head, found, tail = write(_U).partition(_USER)
    if not found:
        raise RescoldoError("the chat template does not write what the user says", fix="--to merged-gguf")
    answer = system = None
    try:
        parts = re.split(f"{_USER}|{_ANSWER}|{_AGAIN}", write(_U, _A, _UU))
        if len(parts) == 4 and (parts[0], parts[3]) == (head, tail) and parts[1].startswith(tail):
            answer = parts[1].removeprefix(tail), parts[2]
    except RescoldoError:
        pass  # one question is all that it takes
    try:
        parts = re.split(f"{_SYSTEM}|{_USER}", write(_S, _U))
        if len(parts) == 3 and parts[2] == tail:
            system = parts[0], parts[1]
    except RescoldoError:
        pass  # a template without system messages
    return Turns(head, system, tail, answer)


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
