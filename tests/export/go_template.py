"""As much of Go's text/template as the Modelfiles use: fields, if/else, range, eq, one variable. A judge for tests."""

from __future__ import annotations

import re
from typing import Any

_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)


def render(template: str, data: dict[str, Any]) -> str:
    """The text that Ollama would give to the model: `data` has System, Prompt and Messages (Role, Content)."""
    tokens = []
    position = 0
    for match in _ACTION.finditer(template):
        tokens += [("text", template[position : match.start()]), ("do", match[1])]
        position = match.end()
    tokens.append(("text", template[position:]))
    output, end = _block(tokens, 0, data, {}, True)
    assert end == len(tokens), "an end too many"
    return output


def _value(expression: str, dot: Any, variables: dict[str, Any]) -> Any:
    if expression.startswith('"'):
        return expression[1:-1]
    if expression.startswith("eq "):
        _, field, literal = expression.split(" ", 2)
        return _value(field, dot, variables) == literal.strip('"')
    if expression.startswith("$"):
        return variables[expression]
    return dot[expression.removeprefix(".")]


def _block(tokens: list[tuple[str, str]], at: int, dot: Any, variables: dict[str, Any], live: bool) -> tuple[str, int]:
    """Render up to the `end` or `else` that closes this block; returns the text and where that stands."""
    output = ""
    while at < len(tokens):
        kind, text = tokens[at]
        word = text.split(" ")[0]
        if kind == "text":
            output += text if live else ""
        elif word in ("end", "else"):
            return output, at
        elif word == "if":
            done = False
            while True:
                text = tokens[at][1]
                condition = text.removeprefix("else ").removeprefix("if ")
                chosen = live and not done and (text == "else" or bool(_value(condition, dot, variables)))
                part, at = _block(tokens, at + 1, dot, variables, chosen)
                done, output = done or chosen, output + part
                if tokens[at][1] == "end":
                    break
        elif word == "range":
            items = _value(text.removeprefix("range "), dot, variables) if live else []
            _, end = _block(tokens, at + 1, dot, variables, False)
            for item in items:
                output += _block(tokens, at + 1, item, variables, True)[0]
            at = end
        elif live and (" := " in text or " = " in text):
            name, _, value = re.split(" (:?=) ", text)
            variables[name] = value == "true"
        elif live:
            output += str(_value(text, dot, variables))
        at += 1
    return output, at
