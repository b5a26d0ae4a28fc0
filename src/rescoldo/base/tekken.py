"""A tokenizer from a tekken.json alone, as Mistral AI publishes its models: a byte-level BPE by ranks, with the chat
format of its version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rescoldo.base.hub_id import REFETCH
from rescoldo.base.tokenizer_build import CONTROL, NORMAL, Vocabulary, add_begin_and_end
from rescoldo.errors import RescoldoError
from rescoldo.files import load_json

TEKKEN = "tekken.json"
_MAX_BYTES = 1 << 28
_TURNS = (
    "{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('user and assistant must take turns, the user first') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{{- '[INST]' + BEFORE + message['content'] + '[/INST]' }}"
    "{%- else %}{{- message['content'] + eos_token }}{%- endif %}"
    "{%- endfor %}"
)
_SPLIT = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
)
# up to version 3 a system message goes before the last question; from version 7 on it has its own tokens
_OLD = _SPLIT + _TURNS.replace("BEFORE", "(system + '\n\n' if system and loop.last else '')")
_NEW = (
    _SPLIT
    + "{%- if system %}{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{%- endif %}"
    + _TURNS.replace("BEFORE", "''")
)


def from_tekken(path: Path) -> tuple[Any, Vocabulary, dict[str, int | None], str]:
    """A `tokenizers.Tokenizer`, its vocabulary, the ids of bos, eos, unk and pad, and the chat template.

    Raises:
        RescoldoError: the file is damaged, or of an unknown kind.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise RescoldoError("is too large to be a tokenizer", where=str(path))
    load_json(path, REFETCH)  # raises if it is not a JSON object
    from transformers.integrations.mistral.tokenizer import MistralConverter

    try:
        backend = MistralConverter(str(path)).converted()
    except Exception as error:  # any type: the library does not expect damaged files
        raise RescoldoError(
            f"this is not a tekken tokenizer ({type(error).__name__}: {error!s:.100})", where=str(path), fix=REFETCH
        ) from None
    ids = backend.get_vocab(with_added_tokens=True)
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    tokens = [""] * (max(ids.values()) + 1)
    for token, index in ids.items():
        tokens[index] = token
    vocabulary = Vocabulary(tokens, [CONTROL if token in special else NORMAL for token in tokens], [])
    texts = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    named = {name: ids.get(token) for name, token in texts.items()}
    add_begin_and_end(backend, vocabulary, named["bos"], None)
    template = "" if not {"[INST]", "[/INST]"} <= special else _NEW if "[SYSTEM_PROMPT]" in special else _OLD
    return backend, vocabulary, named, template
