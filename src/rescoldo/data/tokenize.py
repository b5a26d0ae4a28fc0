"""Records as token ids: prompt through the model's own chat template, then the answer and the end of the turn.

The prompt is tokenized by itself, because that is what generation will see. The answer's tokens follow, then the
token with which the template closes the assistant's turn, so that the model learns to stop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescoldo.data.records import Record
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError
from rescoldo.role import Role

SHOWN = 5  # lines that an error names beside the first
_SENTINEL = "xqzanswerzqx"  # stands in for an answer while the template is asked how it ends a turn
_CUT = "\ufdd0"  # stands where a text is cut before it is tokenized; Unicode keeps it for a program's own use


@dataclass(frozen=True)
class Tokenized:
    """A tokenized dataset.

    Attributes:
        examples: those that fit, in the records' order.
        kept: for each example, its record's index.
        overruns: (line in the file, tokens) of each record that is longer than max_length and left out whole.
        n_tokens: tokens of all examples, prompts included.
        n_targets: tokens that the loss is on.
    """

    examples: list[Example]
    kept: list[int]
    overruns: list[tuple[int, int]] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(example.tokens) for example in self.examples)

    @property
    def n_targets(self) -> int:
        """Tokens that the loss is on."""
        return sum(example.n_targets for example in self.examples)


def tokenize_records(records: Sequence[dict[str, Any]], role: Role, tokenizer: Any, max_length: int) -> Tokenized:
    """Tokenize each record. One that is longer than `max_length` tokens is left out and reported, never cut.

    Raises:
        RescoldoError: the tokenizer's template cannot render the prompt.
    """
    end = end_of_turn(tokenizer)
    examples: list[Example] = []
    kept: list[int] = []
    overruns: list[tuple[int, int]] = []
    for index, record in enumerate(records):
        prompt = prompt_ids(role.messages(record), tokenizer)
        answer = tokenizer(role.target(record), add_special_tokens=False)["input_ids"]
        tokens = (*prompt, *answer, end)
        if len(tokens) > max_length:
            overruns.append((getattr(record, "line", 0) or index + 1, len(tokens)))
            continue
        examples.append(Example(tokens, len(prompt)))
        kept.append(index)
    return Tokenized(examples, kept, overruns)


def refuse_control_tokens(path: Path, records: Sequence[Record], role: Role, tokenizer: Any) -> None:
    """Stop where a text of the dataset holds what the model reads as the beginning or the end of a turn.

    Raises:
        RescoldoError: one error that names the first such text, and the lines of some others.
    """
    pattern = _marks_pattern(tokenizer)
    found: list[tuple[int, str, str]] = []
    for record in records:
        texts = [(f"message {i} ({turn['role']})", turn["content"]) for i, turn in enumerate(role.messages(record), 1)]
        marks = ((field, pattern.search(text)) for field, text in (*texts, (role.spec.answer, role.target(record))))
        found += [(record.line, field, mark[0]) for field, mark in marks if mark][:1]
    if not found:
        return
    (line, field, token), *others = found
    what = f"holds the model's control token {token}, which would begin or end a turn there"
    if others:
        what += "; also " + ", ".join(f"line {other}" for other, _, _ in others[:SHOWN])
        what += f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    raise RescoldoError(what, where=f"{path}:{line}, {field}", fix="write it otherwise, or leave the example out")


def _turn_marks(tokenizer: Any) -> set[str]:
    """The special tokens that the template writes around turns, and those that begin and end a text.

    Others (<filename>, <think>) may stand in a text: they mark no turn.
    """
    special = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    written = _text_ids(prompt_text([{"role": "user", "content": "?"}], tokenizer) or "", tokenizer)
    ids = (special & set(written)) | stop_ids(tokenizer) | {tokenizer.bos_token_id}
    return {tokenizer.convert_ids_to_tokens(index) for index in ids if index is not None}


def _marks_pattern(tokenizer: Any) -> re.Pattern[str]:
    """What finds a turn mark in a text."""
    return re.compile("|".join(map(re.escape, sorted(_turn_marks(tokenizer), key=len, reverse=True))))


def prompt_text(messages: list[dict[str, str]], tokenizer: Any) -> str | None:
    """The conversation as the model's chat template writes it, up to where the answer begins; None without template.

    Where the template knows no system message (Mistral's), it becomes the beginning of the user's first.

    Raises:
        RescoldoError: the template refuses the messages or is damaged.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        try:
            return str(_render(tokenizer, messages, add_generation_prompt=True))
        except Exception:
            if len(messages) < 2 or messages[0]["role"] != "system":
                raise
            question = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            merged = [{**messages[1], "content": question}, *messages[2:]]
            return str(_render(tokenizer, merged, add_generation_prompt=True))
    except Exception as error:  # jinja2 errors of many kinds: the template comes with the model
        raise RescoldoError(
            f"the model's chat template cannot write the prompt: {error}",
            where=str(getattr(tokenizer, "name_or_path", "") or "chat template"),
            fix="use an instruct model, or mend chat_template in its tokenizer_config.json",
        ) from None


def prompt_ids(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """The prompt's token ids: what the template wrote with no special token added to it (the template writes its own
    beginning of sequence). A model without a template gets the bare text and its tokenizer's own special tokens.

    A turn mark within a message (<|im_end|>) is what its author wrote, not a mark: its letters are tokenized.

    Raises:
        RescoldoError: see prompt_text; or a message is no text.
    """
    messages = _disarmed(messages, tokenizer)
    text = prompt_text(messages, tokenizer)
    if text is not None:
        return _text_ids(text, tokenizer)
    text = "\n\n".join(message["content"] for message in messages) + "\n\n"
    first, *others = text.split(_CUT)
    ids = list(tokenizer(first)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers close every text
    return ids + _text_ids(_CUT.join(others), tokenizer)


def _disarmed(messages: list[dict[str, str]], tokenizer: Any) -> list[dict[str, str]]:
    """The messages with a cut behind the first letter of each turn mark: tokenized in pieces it is none any more."""
    texts = [message["content"] for message in messages]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RescoldoError("the question holds bytes that are no characters", fix="write it in UTF-8") from None
    if not any(token in text for token in tokenizer.get_added_vocab() for text in texts):
        return messages  # nearly always, and quickly found out
    pattern = _marks_pattern(tokenizer)

    def cut(text: str) -> str:
        return pattern.sub(lambda mark: mark[0][0] + _CUT + mark[0][1:], text)

    return [{**message, "content": cut(message["content"])} for message in messages]


def _text_ids(text: str, tokenizer: Any) -> list[int]:
    """The token ids of a text, piece by piece where it is cut, with no special token added."""
    return [
        i for piece in text.split(_CUT) for i in tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    ]


def end_of_turn(tokenizer: Any) -> int:
    """The token that closes the assistant's turn in the chat template (<|im_end|>, </s>, <|eot_id|>…), else EOS.

    Raises:
        RescoldoError: the tokenizer has neither.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
        try:
            tail = str(_render(tokenizer, messages, add_generation_prompt=False)).rpartition(_SENTINEL)[2]
        except Exception:  # a template that cannot write an answer: EOS it is
            tail = ""
        special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else ():
            if token in special:
                return int(token)
    if eos is None:
        raise RescoldoError(
            "the tokenizer has no end-of-sequence token, so that the model could never stop",
            where=str(getattr(tokenizer, "name_or_path", "") or "tokenizer"),
            fix="set eos_token in the model's tokenizer_config.json",
        )
    return int(eos)


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the template's end of turn and the tokenizer's end of sequence."""
    eos = getattr(tokenizer, "eos_token_id", None)
    return frozenset({end_of_turn(tokenizer)} | ({int(eos)} if eos is not None else set()))


def _render(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> Any:
    # enable_thinking: qwen3's template then leaves no room for a train of thought; others ignore it
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
    )
