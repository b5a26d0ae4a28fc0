"""Thinking parts: what a model writes for itself before an answer, between marks."""

from __future__ import annotations

MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")  # keys of a message besides its content


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking part with its marks and the white space around it, rest) for a text that begins with one; ("", text)
    for any other."""
    for start, end in MARKS:
        if text.lstrip().startswith(start) and end in text:
            answer = text.rpartition(end)[2].lstrip()
            return text[: len(text) - len(answer)], answer
    return "", text


def inner(thinking: str) -> str:
    """The text between the marks of a thinking part."""
    for start, end in MARKS:
        if start in thinking:
            return thinking.partition(start)[2].rpartition(end)[0].strip("\n")
    return thinking.strip("\n")


def spoken(text: str) -> str:
    """The text after the last thinking part; the opening mark may be missing (it may be in the prompt)."""
    for _, end in MARKS:
        text = text.rpartition(end)[2]
    return text.strip()


def opened_at_end(text: str) -> str:
    """The thinking part, closed or not, that a text ends with; "" without one."""
    begins = [text.find(start) for start, _ in MARKS if start in text]
    return text[min(begins) :] if begins else ""


def is_closed(opened: str) -> bool:
    """Whether the thinking part at the end of a prompt is closed."""
    return any(end in opened for _, end in MARKS)
