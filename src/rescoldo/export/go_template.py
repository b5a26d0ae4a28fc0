"""A chat template as a template for Ollama, in Go's template language.

The structure of the chat template is inferred by rendering conversations with it. Most templates put each message
between two fixed texts, independent of its position: `Framed`. Others treat the first system message specially, or do
not support system messages: `Turns`.

Ollama passes a template .Messages (including system messages, in order) and .System (all of them, joined).
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
_CONVERSATIONS = (  # a template is `Framed` if it renders all of these accordingly
    (_U,), (_U, _A, _UU), (_S, _U), (_S, _U, _A, _UU), (_U, _A, _SS, _UU), (_S, _U, _A, _SS, _UU), (_U, _SS),
)  # fmt: skip


@dataclass(frozen=True)
class Framed:
    """A template that puts each message between two texts.

    Attributes:
        frames: role → the texts before and after its content.
        lead: the text before everything, if the first message is a system message, and if it is not.
        begin: the text that begins the answer.
    """

    frames: dict[str, tuple[str, str]]
    lead: tuple[str, str]
    begin: str

    def render(self, messages: tuple[tuple[str, str], ...]) -> str:
        """The prompt of a conversation of (role, content)."""
        text = "".join(content.join(self.frames[role]) for role, content in messages)
        return self.lead[messages[0][0] != "system"] + text + self.begin

    def template(self) -> str:
        """The template in Go's language."""
        roles = [
            'if eq .Role "' + role + '" }}' + _literal(before) + "{{ .Content }}" + _literal(after)
            for role, (before, after) in self.frames.items()
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
    """The texts that another template puts around the parts of a conversation. A later system message is moved to the
    front.

    Attributes:
        head: before the first question, if there is no system message.
        system: before a system message, and between it and the first question; None: not supported by the template.
        tail: after a question, up to the beginning of the answer.
        answer: between `tail` and a previous answer, and between its end and the next question. None if the template
            does not render conversations in this way.
    """

    head: str
    system: tuple[str, str] | None
    tail: str
    answer: tuple[str, str] | None

    def template(self) -> str:
        """The template in Go's language, without a newline or blank that the model should not see."""
        head = _literal(self.head)
        if self.system:
            before, after = map(_literal, self.system)
            head = "{{ if .System }}" + before + "{{ .System }}" + after + "{{ else }}" + head + "{{ end }}"
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
    """The tokenizer's chat template as a template for Ollama.

    Raises:
        RescoldoError: it cannot render a single question.
    """
    return read_template(tokenizer).template()


def read_template(tokenizer: Any) -> Framed | Turns:
    """Infer the structure of the chat template.

    Raises:
        RescoldoError: it cannot render a single question.
    """
    bos = tokenizer.bos_token if (tokenizer("x")["input_ids"] or [None])[0] == tokenizer.bos_token_id else None

    def write(*messages: tuple[str, str]) -> str:
        text = prompt_text([{"role": role, "content": content} for role, content in messages], tokenizer) or ""
        return text.removeprefix(bos) if bos else text  # Ollama adds bos itself

    def finished(*messages: tuple[str, str]) -> str:
        """Without the text that begins an answer."""
        turns = [{"role": role, "content": content} for role, content in messages]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False))
        return text.removeprefix(bos) if bos else text

    try:
        framed = _framed(write, finished)
        if all(write(*messages) == framed.render(messages) for messages in _CONVERSATIONS):
            return framed
    except Exception:  # it refuses a conversation (jinja2 raises many types), or renders it differently
        pass
    return _turns(write)


def _framed(write: Any, finished: Any) -> Framed:
    """The texts around each role's content, cut out of rendered conversations.

    Raises:
        ValueError: they cannot be determined.
    """
    user_close = finished(_U, _A, _UU).split(_AGAIN)[1]
    before, between, rest = re.split(f"{_USER}|{_ANSWER}", finished(_U, _A, _UU).split(_AGAIN)[0])
    answer_close = finished(_U, _A).split(_ANSWER)[1]
    answer_open, user_open = _cut(between, user_close), _cut(rest, answer_close)
    _, _, system, _ = re.split(f"{_USER}|{_ANSWER}|{_LATER}", finished(_U, _A, _SS, _UU))
    system_open = _cut(system, answer_close)
    with_system, after, _ = re.split(f"{_SYSTEM}|{_USER}", finished(_S, _U))
    frames = {
        "system": (system_open, _cut(after, end=user_open)),
        "user": (user_open, user_close),
        "assistant": (answer_open, answer_close),
    }
    lead = _cut(with_system, end=system_open), _cut(before, end=user_open)
    return Framed(frames, lead, _cut(write(_U), finished(_U)))


def _cut(text: str, begin: str = "", end: str = "") -> str:
    """`text` without a given beginning and end.

    Raises:
        ValueError: it does not have them.
    """
    if not text.startswith(begin) or not text.endswith(end) or len(text) < len(begin) + len(end):
        raise ValueError("unexpected text")
    return text[len(begin) : len(text) - len(end)]


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
        pass  # the template supports a single question only
    try:
        parts = re.split(f"{_SYSTEM}|{_USER}", write(_S, _U))
        if len(parts) == 3 and parts[2] == tail:
            system = parts[0], parts[1]
    except RescoldoError:
        pass  # the template does not support system messages
    return Turns(head, system, tail, answer)


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
