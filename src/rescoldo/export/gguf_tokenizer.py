"""A Hugging Face tokenizer as GGUF metadata, so that llama.cpp tokenizes texts identically.

Two families, as in base.tokenizer_build: byte-level BPE ("gpt2") with llama.cpp's name of its pre-tokenizer, found by
comparing how texts are split, and SentencePiece BPE, either with scores ("llama"), which follow from the order of
merges in tokenizer.json, or with the merges themselves ("gemma4").
"""

from __future__ import annotations

import json
from typing import Any

from rescoldo.base.tokenizer_build import (
    BYTE,
    CONTROL,
    NORMAL,
    PRES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    pre_tokenizer,
)
from rescoldo.errors import RescoldoError
from rescoldo.export.gguf_file import Value
from rescoldo.export.source import Source

_STRING, _UINT32, _INT32, _FLOAT32, _BOOL, _ARRAY = 8, 4, 5, 6, 7, 9  # GGUF's type numbers
PROBE = (  # a text that all known pre-tokenizers split differently
    "Hello  world,\tit's 12345 o'clock: I'LL  pay $1,234.56!\n\n\n  x=+1 a.b/c/d\r\n"
    "El niño comió 3 piñas; ¿qué? ÇĞş straße ﬁne Ⅻ ½ 漢字かな交じり文12 한국어 🙂👩‍👩‍👧\n"
    "Привет, мир! 'TIS THE'VE don’t  \n  //**~~<<>>^^|| \u00a0\u3000 e\u0301 №5 CamelCaseHTTPServer"
)


def tokenizer_metadata(source: Source) -> dict[str, Value]:
    """All metadata under tokenizer.ggml, and the chat template.

    Raises:
        RescoldoError: llama.cpp would tokenize differently.
    """
    tokenizer = source.tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] != "BPE":
        raise _refused(source, f"it is of type {backend['model']['type']}, not BPE")
    family = _sentencepiece if backend["model"].get("byte_fallback") else _byte_level
    metadata = family(source, backend)
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            metadata[f"{key}_token_id"] = Value(index, _UINT32)
    first, last = _added(tokenizer)
    metadata["add_bos_token"], metadata["add_eos_token"] = Value(first, _BOOL), Value(last, _BOOL)
    found = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return {**found, "tokenizer.chat_template": Value(tokenizer.chat_template, _STRING)}


def _refused(source: Source, why: str) -> RescoldoError:
    return RescoldoError(
        f"the tokenizer cannot be written for llama.cpp: {why}",
        where=str(source.base.path),
        fix="--to merged, and llama.cpp's own convert_hf_to_gguf.py",
    )


def _added(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer adds bos before and eos after a text."""
    ids = tokenizer("x")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bool(ids) and bos is not None and ids[0] == bos, bool(ids) and eos is not None and ids[-1] == eos


def _vocabulary(source: Source, backend: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Text and type of each of the model's tokens; rows of the embedding without a token get unique names."""
    size = source.base.config.vocab_size
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    unknown = backend["model"].get("unk_token")
    for text, index in backend["model"]["vocab"].items():
        tokens[index] = text
        types[index] = UNKNOWN if text == unknown else NORMAL
    for token in backend["added_tokens"]:
        tokens[token["id"]] = token["content"]
        if types[token["id"]] != UNKNOWN:
            types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return tokens, types


def _lists(model: str, pre: str, tokens: list[str], types: list[int]) -> dict[str, Value]:
    return {
        "model": Value(model, _STRING),
        "pre": Value(pre, _STRING),
        "tokens": Value(tokens, _ARRAY, _STRING),
        "token_type": Value(types, _ARRAY, _INT32),
    }


def _pairs(backend: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges; in tokenizer.json each is "left right" or [left, right]."""
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in backend["model"]["merges"]]
    return [(left, right) for left, right in merges]


def _byte_level(source: Source, backend: dict[str, Any]) -> dict[str, Value]:
    tokens, types = _vocabulary(source, backend)
    merges = [f"{left} {right}" for left, right in _pairs(backend)]
    lists = _lists("gpt2", _find_pre(source, backend), tokens, types)
    return {**lists, "merges": Value(merges, _ARRAY, _STRING)}


def _find_pre(source: Source, backend: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer that splits PROBE in the same way."""
    own = source.tokenizer.backend_tokenizer.pre_tokenizer
    if own is None:
        raise _refused(source, "it does not split text into words")
    pieces = own.pre_tokenize_str(PROBE)
    ignores = bool(backend["model"].get("ignore_merges"))
    alike = [name for name, pre in PRES.items() if pre_tokenizer(pre).pre_tokenize_str(PROBE) == pieces]
    exact = [name for name in alike if PRES[name].ignore_merges == ignores]
    if not exact:
        raise _refused(source, "it splits text into words in an unknown way")
    return exact[0]


def _sentencepiece(source: Source, backend: dict[str, Any]) -> dict[str, Value]:
    """Scores by the order of merges: the token of the first merge has the highest score."""
    tokens, types = _vocabulary(source, backend)
    types = [
        BYTE if kind == NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">") else kind
        for text, kind in zip(tokens, types, strict=True)
    ]
    rank: dict[str, int] = {}
    for left, right in _pairs(backend):
        rank.setdefault(left + right, len(rank))
    last = float(len(rank))
    scores = [-float(rank.get(text, last)) if kind == NORMAL else 0.0 for text, kind in zip(tokens, types, strict=True)]
    probe = source.tokenizer.tokenize("a")
    prefix = bool(probe) and probe[0].startswith("▁")
    with_merges = source.base.family.gguf_merges
    lists = _lists("gemma4" if with_merges else "llama", "default", tokens, types)
    if with_merges:
        if prefix:
            raise _refused(source, "it puts a space before a text, which a Gemma 4 tokenizer does not")
        lists["merges"] = Value([f"{left} {right}" for left, right in _pairs(backend)], _ARRAY, _STRING)
    return {**lists, "scores": Value(scores, _ARRAY, _FLOAT32), "add_space_prefix": Value(prefix, _BOOL)}
