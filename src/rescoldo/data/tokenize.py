"""Records as token ids: the prompt through the model's own chat template, then the answer and the end-of-turn token.

A prompt is tokenized by itself, because this is what generation will see. It is followed by the answer's tokens, as the
tokenizer produces them after that prompt, and by the token with which the template closes the assistant's turn, so that
the model learns to stop. `template_check` compares the result with the template's rendering of the whole conversation.

A conversation with several answers is a sequence of prompts, each with its answer, and each exactly as in inference.
Where a prompt continues the tokens of the previous prompt and answer, as with most templates, the two are one example;
where the template rewrites earlier turns when the conversation continues (thinking parts removed, tools moved to the
last question), they are separate examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from rescoldo.data.chat_template import (
    AnswerText,
    Messages,
    accepted,
    answer_text,
    is_plain,
    render,
    tools_of,
)
from rescoldo.data.teaching import LAST, Teaching
from rescoldo.data.text import Document
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError
from rescoldo.role import Role
from rescoldo.role.conversation import Conversation, Turns
from rescoldo.role.record import Record
from rescoldo.role.thinking import split_thinking

SHOWN = 5  # lines that an error names in addition to the first
_SENTINEL = "xqzanswerzqx"  # replaces an answer to find out how the template ends a turn
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_CUT = "\ufdd0"  # marks where a text is cut before it is tokenized; Unicode reserves it for a program's internal use


@dataclass(frozen=True)
class Tokenized:
    """A tokenized dataset.

    Attributes:
        examples: those that fit, in the records' order.
        kept: for each example, its record's index.
        overruns: (line in the file, tokens) of each record that is left out because it is longer than max_length.
        n_tokens: tokens of all examples, prompts included.
        n_targets: tokens with a loss.
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
        """The number of tokens with a loss."""
        return sum(example.n_targets for example in self.examples)


def tokenize_records(
    records: Sequence[dict[str, Any]], role: Role, tokenizer: Any, max_length: int, teaching: Teaching = LAST
) -> Tokenized:
    """Tokenize each record. A record longer than `max_length` tokens is left out and reported, never truncated.

    Raises:
        RescoldoError: the tokenizer's template cannot render a prompt or an answer.
    """
    ending = Ending.of(tokenizer)
    examples: list[Example] = []
    kept: list[int] = []
    overruns: list[tuple[int, int]] = []
    for index, record in enumerate(records):
        made = conversation_examples(role.conversation(record), tokenizer, teaching, ending)
        longest = max(len(example.tokens) for example in made)
        if longest > max_length:
            overruns.append((getattr(record, "line", 0) or index + 1, longest))
            continue
        examples += made
        kept += [index] * len(made)
    return Tokenized(examples, kept, overruns)


@dataclass(frozen=True)
class Ending:
    """How answers begin and end with a given tokenizer.

    Attributes:
        lead: white space that the template writes before an answer.
        end: the token that is learned after an answer.
        others: other tokens that end an answer, by text: the template may close a turn that calls a tool with another
            one.
        trims: whether the template strips white space before an answer, and after it.
    """

    lead: str
    end: int
    others: dict[str, int]
    trims: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, tokenizer: Any) -> Ending:
        """Find this out from the tokenizer's template."""
        others = {tokenizer.convert_ids_to_tokens(index): index for index in stop_ids(tokenizer)}
        return cls(_answer_lead(tokenizer), end_of_turn(tokenizer), others, _trims(tokenizer))

    def written(self, answer: str) -> str:
        """An answer without the white space that the template strips: the model neither writes it nor sees it in later
        turns."""
        answer = answer.lstrip() if self.trims[0] else answer
        return answer.rstrip() if self.trims[1] else answer


@dataclass(frozen=True)
class _Answered:
    """A prompt and its answer with the end token; `thinking` is the number of the answer's tokens that are thinking."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    thinking: int


def conversation_examples(
    conversation: Conversation, tokenizer: Any, teaching: Teaching, ending: Ending
) -> list[Example]:
    """The examples of one conversation; consecutive prompts that continue each other share an example.

    Raises:
        RescoldoError: see tokenize_records.
    """
    messages = [without_thoughts(one) if teaching.thinking == "drop" else one for one in conversation.messages]
    learned = conversation.learned[-1:] if teaching.loss == "last" else conversation.learned
    chains: list[list[_Answered]] = []
    for place in learned:
        one = _answered(Turns(messages[:place], conversation.tools), messages[place], tokenizer, ending)
        before = chains[-1][-1] if chains else None
        begin = (*before.prompt, *before.answer) if before else ()
        if before and one.prompt[: len(begin)] == begin:
            chains[-1].append(one)
        else:
            chains.append([one])
    return [_example(chain, teaching) for chain in chains]


def _example(chain: list[_Answered], teaching: Teaching) -> Example:
    """One example from prompts that continue each other."""
    weights: list[float] = []
    for one in chain:
        weights += [teaching.prompt_weight] * (len(one.prompt) - len(weights))
        masked = min(one.thinking if teaching.thinking == "mask" else 0, len(one.answer) - 1)
        weights += [0.0] * masked + [1.0] * (len(one.answer) - masked)
    tokens = (*chain[-1].prompt, *chain[-1].answer)
    n_prompt = 1 if teaching.prompt_weight else len(chain[0].prompt)
    own = tuple(weights[n_prompt:])
    return Example(tokens, n_prompt, None if set(own) == {1.0} else own)


def without_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its thinking part."""
    if message["role"] != "assistant":
        return message
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    return {**rest, "content": split_thinking(message["content"])[1]}


def has_thoughts(message: dict[str, Any]) -> bool:
    """Whether a message has a thinking part."""
    return message["role"] == "assistant" and message != without_thoughts(message)


def _answered(asked: Turns, answer: dict[str, Any], tokenizer: Any, ending: Ending) -> _Answered:
    prompt, text = _prompt(asked, tokenizer)
    templated = text_of_answer(asked, answer, tokenizer, ending)
    if templated is None:
        ids = _answer_ids(prompt, text, ending.written(answer["content"]), ending.lead, tokenizer)
        return _Answered(tuple(prompt), (*ids, ending.end), 0)
    if templated.missing:
        raise RescoldoError(templated.missing, where="chat template", fix=templated.fix)
    ids = _answer_ids(prompt, text, templated.text, "", tokenizer)
    end = ending.others.get(templated.end, ending.end)
    thinking = 0
    if templated.thinking:
        before = text + templated.text[: templated.thinking]
        thinking = sum(start < len(before) for start in _starts(text + templated.text, tokenizer)[len(prompt) :])
    return _Answered(tuple(prompt), (*ids, end), thinking)


def text_of_answer(asked: Turns, answer: dict[str, Any], tokenizer: Any, ending: Ending) -> AnswerText | None:
    """The template's text for an answer that has more than content; None for a plain answer."""
    if is_plain(answer, tokenizer) or not getattr(tokenizer, "chat_template", None):
        return None
    *before, disarmed = _disarmed([*asked, answer], tokenizer)
    return answer_text(Turns(before, asked.tools), disarmed, tokenizer, list(ending.others))


def _starts(text: str, tokenizer: Any) -> list[int]:
    """The position in characters of each token of a text (see _text_ids)."""
    starts: list[int] = []
    at = 0
    for piece in text.split(_CUT):
        offsets = tokenizer(piece, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        starts += [at + begin for begin, _ in offsets["offset_mapping"]]
        at += len(piece) + len(_CUT)
    return starts


def refuse_control_tokens(path: Path, records: Sequence[Record], role: Role, tokenizer: Any) -> None:
    """Raise if a text of the dataset contains a control token of the model that would begin or end a turn.

    Raises:
        RescoldoError: one error that names the first such text, and the lines of some others.
    """
    pattern = _marks_pattern(tokenizer)
    found: list[tuple[int, str, str]] = []
    for record in records:
        whole = role.conversation(record)
        texts = [("tools", text) for text in texts_in(whole.tools)]
        for i, turn in enumerate(whole.messages):
            field = role.spec.answer if i == whole.learned[-1] else f"message {i + 1} ({turn['role']})"
            texts += [(field, text) for text in texts_in({**turn, "role": ""})]
        marks = ((field, pattern.search(text)) for field, text in texts)
        found += [(record.line, field, mark[0]) for field, mark in marks if mark][:1]
    if not found:
        return
    (line, field, token), *others = found
    what = f"holds the model's control token {token}, which would begin or end a turn there"
    if others:
        what += "; also " + ", ".join(f"line {other}" for other, _, _ in others[:SHOWN])
        what += f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    raise RescoldoError(what, where=f"{path}:{line}, {field}", fix="write it otherwise, or leave the example out")


def refuse_marks_in_text(path: Path, records: Sequence[Record], tokenizer: Any) -> None:
    """Raise if a document of plain text contains a control token of the model.

    Raises:
        RescoldoError: one error that names the first.
    """
    pattern = _marks_pattern(tokenizer)
    for record in records:
        if mark := pattern.search(record["text"]):
            line = record.line + record["text"].count("\n", 0, mark.start())
            raise RescoldoError(
                f"holds the model's control token {mark[0]}, which would begin or end a turn there",
                where=f"{path}:{line}",
                fix="write it otherwise, or leave that document out",
            )


def let_think(tokenizer: Any, records: Sequence[dict[str, Any]], role: Role, teaching: Teaching) -> bool:
    """Let prompts leave thinking to the model (chat_template.thinks) if a learned answer has a thinking part.

    Returns:
        Whether one has.
    """
    wanted = teaching.thinking != "drop" and any(
        has_thoughts(whole.messages[place])
        for record in records
        if not isinstance(record, Document)
        for whole in (role.conversation(record),)
        for place in (whole.learned[-1:] if teaching.loss == "last" else whole.learned)
    )
    tokenizer.thinks = wanted
    return wanted


def _turn_marks(tokenizer: Any) -> set[str]:
    """The special tokens that the template writes around turns, and those that begin and end a text.

    Other special tokens (<filename>, <think>) are allowed in texts, because they do not mark turns.
    """
    special = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    written = _text_ids(prompt_text([{"role": "user", "content": "?"}], tokenizer) or "", tokenizer)
    ids = (special & set(written)) | stop_ids(tokenizer) | {tokenizer.bos_token_id}
    return {tokenizer.convert_ids_to_tokens(index) for index in ids if index is not None}


def _marks_pattern(tokenizer: Any) -> re.Pattern[str]:
    """A pattern that matches the turn marks."""
    return re.compile("|".join(map(re.escape, sorted(_turn_marks(tokenizer), key=len, reverse=True))))


def prompt_text(messages: Messages, tokenizer: Any) -> str | None:
    """The prompt of a conversation, as the model's chat template renders it; None without a template.

    Raises:
        RescoldoError: the template refuses the messages or is damaged.
    """
    return accepted(messages, tokenizer)[1] if getattr(tokenizer, "chat_template", None) else None


def prompt_ids(messages: Messages, tokenizer: Any) -> list[int]:
    """The prompt's token ids: the template's text with no special token added to it (the template writes the beginning
    of sequence itself). Without a template: the bare text with the tokenizer's own special tokens.

    A turn mark within a message (<|im_end|>) is part of the author's text: it is tokenized as ordinary characters.

    Raises:
        RescoldoError: see prompt_text; or a message is not valid text.
    """
    return _prompt(messages, tokenizer)[0]


def _prompt(messages: Messages, tokenizer: Any) -> tuple[list[int], str]:
    """prompt_ids, and the text that they were made from (with cuts, see _disarmed)."""
    messages = _disarmed(messages, tokenizer)
    text = prompt_text(messages, tokenizer)
    if text is not None:
        return _text_ids(text, tokenizer), text
    text = "\n\n".join(message["content"] for message in messages) + "\n\n"
    first, *others = text.split(_CUT)
    ids = list(tokenizer(first)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers append EOS to every text
    return (ids + _text_ids(_CUT.join(others), tokenizer) if others else ids), text


def _answer_ids(prompt: list[int], text: str, answer: str, lead: str, tokenizer: Any) -> list[int]:
    """The answer's token ids after the prompt, which has the text `text` and the token ids `prompt`.

    SentencePiece would put a space mark in front of an answer that is tokenized by itself, which it does not have after
    a line end. So the answer is tokenized together with the prompt; if a token would span the border between them,
    which never happens in generation, it is tokenized after a neutral character instead. `lead`: white space that the
    template writes before an answer. It is learned only if it disappears in decoding (SentencePiece: it is the answer's
    space mark).
    """
    for before in dict.fromkeys((lead, "")):
        together = _text_ids(text + before + answer, tokenizer)
        ids = together[len(prompt) :]
        if together[: len(prompt)] == prompt and (not before or _decoded(ids, tokenizer) == answer):
            return ids
    for anchor in ("", "\n", "x"):
        start = _text_ids(anchor, tokenizer)
        ids = _text_ids(anchor + answer, tokenizer)[len(start) :]
        word = _text_ids("x", tokenizer)
        if _decoded([*word, *ids], tokenizer) == _decoded(word, tokenizer) + answer:
            return ids
    return _text_ids(answer, tokenizer)  # the tokenizer normalizes texts (NFC), so they cannot be compared


def _decoded(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _disarmed(messages: Messages, tokenizer: Any) -> Messages:
    """The messages with a cut after the first letter of each turn mark, so that it is not tokenized as a mark."""
    texts = list(texts_in(messages))
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RescoldoError("the question contains bytes that are not characters", fix="write it in UTF-8") from None
    if not any(token in text for token in tokenizer.get_added_vocab() for text in texts):
        return messages  # the usual case, found out quickly
    pattern = _marks_pattern(tokenizer)

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda mark: mark[0][0] + _CUT + mark[0][1:], value)
        if isinstance(value, dict):
            return {name: cut(item) for name, item in value.items()}
        return [cut(item) for item in value] if isinstance(value, list) else value

    return Turns([{**cut(message), "role": message["role"]} for message in messages], cut(tools_of(messages)))


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def _text_ids(text: str, tokenizer: Any) -> list[int]:
    """The token ids of a text, tokenized piece by piece between cuts, with no special token added."""
    return [
        i for piece in text.split(_CUT) for i in tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    ]


def end_of_turn(tokenizer: Any) -> int:
    """The token that ends an answer and is learned after each target: the one with which the chat template closes the
    assistant's turn (<|im_end|>, </s>, <|eot_id|>…). If the template writes none: the tokenizer's EOS, or the first end
    token that the model's files name if EOS is not among them.

    Raises:
        RescoldoError: there is no such token.
    """
    ending = _answer_frame(tokenizer)[1]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    for token in tokenizer(ending, add_special_tokens=False)["input_ids"] if ending else ():
        if token in special:
            return int(token)
    declared = declared_stop_ids(tokenizer)
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is not None and (eos in declared or not declared):
        return int(eos)
    if declared:
        return declared[0]
    raise RescoldoError(
        "the tokenizer has no end-of-sequence token, so the model could never stop",
        where=str(getattr(tokenizer, "name_or_path", "") or "tokenizer"),
        fix="set eos_token in the model's tokenizer_config.json",
    )


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, in training, evaluation, chat, serving and export alike: the learned one
    (end_of_turn), the tokenizer's EOS, and those that the model's files name (eos_token_id in generation_config.json
    and config.json; GGUF's eos, eot and eom)."""
    eos = getattr(tokenizer, "eos_token_id", None)
    own = [] if eos is None else [int(eos)]
    return frozenset((end_of_turn(tokenizer), *declared_stop_ids(tokenizer), *own))


def declared_stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """The end tokens that the base model's files name, as recorded by BaseModel.tokenizer()."""
    return tuple(getattr(tokenizer, "declared_stop_ids", ()))


def fix_date(tokenizer: Any, day: date) -> bool:
    """Make the chat template write `day` wherever it asks for today's date (as Llama 3's does), so that a run's prompts
    do not change from day to day. Returns whether the template uses the date.

    strftime_now takes a strftime format; the call is replaced by its result.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return False
    fixed = _CLOCK.sub(lambda call: repr(day.strftime(call[2])), template)
    if fixed == template:
        return False
    tokenizer.chat_template = fixed
    return True


def _answer_frame(tokenizer: Any) -> tuple[str, str]:
    """What the template writes between a prompt and its answer, and after an answer; ("", "") if it is unknown."""
    asked, before, ending = _around(tokenizer, _SENTINEL)
    return (before[len(asked) :] if before.startswith(asked) else ""), ending


def _around(tokenizer: Any, answer: str) -> tuple[str, str, str]:
    """The prompt of a question, and what the template writes before and after the sentinel answer to it; three times ""
    if it is unknown."""
    if not getattr(tokenizer, "chat_template", None):
        return "", "", ""
    question = [{"role": "user", "content": "?"}]
    try:
        asked = render(tokenizer, question, add_generation_prompt=True)
        whole = render(tokenizer, [*question, {"role": "assistant", "content": answer}], add_generation_prompt=False)
    except Exception:  # the template cannot render an answer
        return "", "", ""
    before, _, ending = whole.rpartition(_SENTINEL)
    return asked, before, ending


def _trims(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the template strips white space before an answer, and after it."""
    _, before, ending = _around(tokenizer, f" \n{_SENTINEL}\n ")
    return bool(before) and not before.endswith(" \n"), bool(before) and not ending.startswith("\n ")


def _answer_lead(tokenizer: Any) -> str:
    """The white space that the template writes between a prompt and its answer."""
    lead = _answer_frame(tokenizer)[0]
    return "" if lead.strip() else lead
