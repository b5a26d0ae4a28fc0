"""How a program's prompt is written and its answer parsed. Imported only if dspy is installed."""

from __future__ import annotations

from typing import Any

import dspy


class TextAdapter(dspy.ChatAdapter):  # type: ignore[misc]
    """Writes a program with one input and one output as plain chat turns; the answer is the whole text.

    DSPy's field markers cost a small model more than the task itself. Programs with more fields use the markers.
    """

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)  # no second request for an answer that cannot be parsed

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The chat messages: the instructions, each example as a question and its answer, the question."""
        if not _is_plain(signature):
            return list(super().format(signature, demos, inputs))
        (question,), (answer,) = signature.input_fields, signature.output_fields
        messages = [{"role": "system", "content": signature.instructions}] if signature.instructions.strip() else []
        for demo in demos:
            if demo.get(question) and demo.get(answer):
                messages.append({"role": "user", "content": _ask(question, demo[question])})
                messages.append({"role": "assistant", "content": str(demo[answer])})
        return [*messages, {"role": "user", "content": _ask(question, inputs[question])}]

    def parse(self, signature: Any, completion: str, **more: Any) -> dict[str, Any]:
        """The answer's fields. With a single field, an answer without DSPy's markers is that field as a whole: MIPROv2
        asks for instructions in this form, and would fail when a small model forgets the markers."""
        fields = list(signature.output_fields)
        if _is_plain(signature):
            return {fields[0]: completion}
        try:
            return dict(super().parse(signature, completion, **more))
        except dspy.utils.exceptions.AdapterParseError:
            if len(fields) != 1 or signature.output_fields[fields[0]].annotation is not str or not completion.strip():
                raise
            return {fields[0]: completion.strip()}


def _is_plain(signature: Any) -> bool:
    outputs = list(signature.output_fields.values())
    return len(signature.input_fields) == 1 and len(outputs) == 1 and outputs[0].annotation is str


def _ask(question: str, value: Any) -> str:
    return f"{question.capitalize()}: {value}"
