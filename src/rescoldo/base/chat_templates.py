"""Chat templates for models whose files have none: Mistral Instruct's, and a plain one for base models.

The plain template is what a model that was only pretrained is trained and asked with. It has no control tokens, since
such a model knows none, but its beginning and its end of a sequence:

    <bos>SYSTEM MESSAGE

    User: QUESTION

    Assistant:
    ANSWER<eos>

A further question follows with a blank line before it. The beginning is written where the tokenizer puts one before a
text. The end is the token that training teaches the model to stop with.
"""

from __future__ import annotations

from typing import Any

_INST_BODY = (
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] + '\n\n' %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
    "{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('user and assistant must take turns, the user first') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{{- '[INST] ' + (system if loop.WHERE else '') + message['content'] + 'END' }}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}"
    "{%- endfor %}"
)
# Mistral 7B Instruct v0.1 and v0.2: [INST] is ordinary text, a system message goes before the first question.
INST_AS_TEXT = _INST_BODY.replace("END", " [/INST]").replace("WHERE", "first")
# From v0.3 on: [INST] is a control token, a system message goes before the last question.
INST_AS_TOKEN = _INST_BODY.replace("END", "[/INST]").replace("WHERE", "last")

PLAIN = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{- message['content'] + '\n\n' }}"
    "{%- elif message['role'] == 'user' %}{{- 'User: ' + message['content'] + '\n\n' }}"
    "{%- elif message['role'] == 'assistant' %}{{- 'Assistant:\n' + message['content'] + eos_token + '\n\n' }}"
    "{%- else %}{{- raise_exception('the roles are system, user and assistant') }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:\n' }}{%- endif %}"
)
PLAIN_WITH_BOS = "{{- bos_token }}" + PLAIN
_SUPPLIED = frozenset({INST_AS_TEXT, INST_AS_TOKEN, PLAIN, PLAIN_WITH_BOS})


def supply(tokenizer: Any, names: list[str]) -> str:
    """The template for a model whose files have none.

    Mistral Instruct's if [INST] and [/INST] are control tokens (v0.3 on), or if it has a SentencePiece vocabulary
    without them and calls itself both "mistral" and "instruct"; else the plain one.

    Args:
        names: what the model is called, by its files and by the user.
    """
    if {"[INST]", "[/INST]"} <= set(tokenizer.added_tokens_encoder):
        return INST_AS_TOKEN
    text = " ".join(names).lower()
    if "mistral" in text and "instruct" in text and {"▁[", "<0x0A>"} <= set(tokenizer.get_vocab()):
        return INST_AS_TEXT
    ids = tokenizer("x")["input_ids"]
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return PLAIN_WITH_BOS if begins else PLAIN


def is_supplied(tokenizer: Any) -> bool:
    """Whether the template is one of this module's, which other programs do not know of."""
    return tokenizer.chat_template in _SUPPLIED


def plain_note(tokenizer: Any) -> str:
    """What a user has to be told of a model with the plain template, in one line; "" for all other models."""
    if getattr(tokenizer, "chat_template", None) not in (PLAIN, PLAIN_WITH_BOS):
        return ""
    return (
        f"the model has no chat template, as base models have none: the plain one is used, answers end with "
        f"{tokenizer.eos_token} (docs/families.md)"
    )
