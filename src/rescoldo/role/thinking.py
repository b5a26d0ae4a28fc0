"""Thinking parts: what a model writes for itself in front of an answer, between marks."""

from __future__ import annotations

MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")  # of a message, beside its content


def split_thinking(text: str) -> tuple[str, str]:
    """(the thinking part with its marks and the white space around it, the rest) of a text that begins with one;
    ("", text) of any other."""
    for start, end in MARKS:
        if text.lstrip().startswith(start) and end in text:
            answer = text.rpartition(end)[2].lstrip()
            return text[: len(text) - len(answer)], answer
    return "", text


def inner(thinking: str) -> str:
    """What stands between the marks of a thinking part."""
    for start, end in MARKS:
        if start in thinking:
            return thinking.partition(start)[2].rpartition(end)[0].strip("\n")
    return thinking.strip("\n")


def spoken(text: str) -> str:
    """What follows the last thinking part of a text, also where its beginning is missing (the prompt has opened it)."""
    for _, end in MARKS:
        text = text.rpartition(end)[2]
    return text.strip()


def opened_at_end(text: str) -> str:
    """The thinking part, whole or only opened, with which a text ends; "" without."""
    begins = [text.find(start) for start, _ in MARKS if start in text]
    return text[min(begins) :] if begins else ""


def is_closed(opened: str) -> bool:
    """Whether a thinking part that a prompt ends with is closed there."""
    return any(end in opened for _, end in MARKS)
