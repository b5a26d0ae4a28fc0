"""Chat templates for models whose files have none: Mistral Instruct's, and a plain one for base models.

The plain template is for models that were only pretrained. It uses no control tokens, since such a model has learned
none, except its beginning and end of sequence:

    <bos>SYSTEM MESSAGE

    User: QUESTION

    Assistant:
    ANSWER<eos>

A further question follows after a blank line. The beginning of sequence is written if the tokenizer puts one before
texts. The end of sequence is the token that the model learns to stop with.
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
# Mistral 7B Instruct v0.1 and v0.2: [INST] is ordinary text, and a system message goes before the first question.
INST_AS_TEXT = _INST_BODY.replace("END", " [/INST]").replace("WHERE", "first")
# From v0.3 on: [INST] is a control token, and a system message goes before the last question.
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

    Mistral Instruct's if [INST] and [/INST] are control tokens (from v0.3 on), or if the model has a SentencePiece
    vocabulary without them and its names contain "mistral" and "instruct"; otherwise the plain one.

    Args:
        names: the model's names, from its files and from the user.
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
    """Whether the template is one of this module's, which other programs do not know."""
    return tokenizer.chat_template in _SUPPLIED


def plain_note(tokenizer: Any) -> str:
    """A line for the user about a model with the plain template; "" for all other models."""
    if getattr(tokenizer, "chat_template", None) not in (PLAIN, PLAIN_WITH_BOS):
        return ""
    return (
        f"the model has no chat template, as usual for base models: the plain one is used, answers end with "
        f"{tokenizer.eos_token} (docs/families.md)"
    )
