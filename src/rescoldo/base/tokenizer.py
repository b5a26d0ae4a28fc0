"""The tokenizer of a base model, with its chat template: from tokenizer.json, a SentencePiece model, a tekken.json or a
GGUF file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rescoldo.base.chat_templates import supply
from rescoldo.base.gguf_config import scalar
from rescoldo.base.gguf_header import read_header
from rescoldo.base.hub_id import REFETCH
from rescoldo.base.tekken import TEKKEN, from_tekken
from rescoldo.base.tokenizer_build import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    Vocabulary,
    add_begin_and_end,
    build_byte_level,
    build_sentencepiece,
)
from rescoldo.engine.config import DecoderConfig
from rescoldo.errors import RescoldoError
from rescoldo.files import load_json, refuse_pointer, write_atomic, write_json


class TokenizerFiles(Protocol):
    """The source of a tokenizer."""

    @property
    def path(self) -> Path:
        """The directory or file, for messages."""

    def load(self) -> tuple[Any, list[str]]:
        """The tokenizer from the files, and the model's names for itself in them."""

    def end_ids(self) -> list[Any]:
        """End-of-answer tokens according to the files, unchecked."""


@dataclass(frozen=True)
class DirectoryTokenizer:
    """The tokenizer of a Hugging Face directory: tokenizer.json, or else a converted tokenizer.model or tekken.json."""

    path: Path
    max_positions: int

    def load(self) -> tuple[Any, list[str]]:
        """See TokenizerFiles."""
        return _from_directory(self.path, self.max_positions), []

    def end_ids(self) -> list[Any]:
        """See TokenizerFiles."""
        found: list[Any] = []
        for name in ("generation_config.json", "config.json"):
            if (self.path / name).is_file():
                value = load_json(self.path / name, REFETCH).get("eos_token_id")
                found += value if isinstance(value, list) else [value]
        return found


@dataclass(frozen=True)
class GgufTokenizer:
    """The tokenizer in a GGUF file's metadata."""

    path: Path
    max_positions: int
    ends: Sequence[Any] = ()  # see end_ids

    def load(self) -> tuple[Any, list[str]]:
        """See TokenizerFiles."""
        return _from_gguf(self.path, self.max_positions)

    def end_ids(self) -> list[Any]:
        """See TokenizerFiles."""
        return list(self.ends)


def end_ids(metadata: dict[str, Any], path: Path) -> list[Any]:
    """The tokens that a GGUF file's metadata names as ends of an answer."""
    return [scalar(metadata, f"tokenizer.ggml.{name}_token_id", str(path)) for name in ("eos", "eot", "eom")]


def load_tokenizer(files: TokenizerFiles, config: DecoderConfig, spec: str) -> Any:
    """The base model's own tokenizer, a transformers fast tokenizer, with a chat template. Its `declared_stop_ids` are
    the end-of-answer tokens that the model's files name (see data.tokenize.stop_ids), its `model_max_length` is at most
    the model's context.

    If the model has no template, `chat_templates` supplies one.

    Raises:
        RescoldoError: the tokenizer is missing, damaged, of an unknown kind, or larger than the model's vocabulary.
    """
    (tokenizer, names), where = files.load(), str(files.path)
    tokenizer = _without_what_is_beyond(tokenizer, config.vocab_size)
    if len(tokenizer) > config.vocab_size and max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise RescoldoError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}", where=where
        )
    if tokenizer.eos_token_id is None:
        raise RescoldoError("the tokenizer has no end-of-sequence token, so no answer could end", where=where)
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not tokenizer.chat_template:
        tokenizer.chat_template = supply(tokenizer, [config.architecture, spec, where, *names])
    tokenizer.declared_stop_ids = _declared_stops(files, config)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_positions)
    return tokenizer


class _Given:
    """A `tokenizers` object whose deep copy is itself: transformers makes a deep copy, through JSON, which takes 1.4 s
    with Gemma's 262,144 tokens."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.backend


def _wrap(backend: Any, vocabulary: Vocabulary, ids: dict[str, int | None], max_positions: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    named = {f"{key}_token": vocabulary.tokens[index] for key, index in ids.items() if index is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=_Given(backend),
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
        padding_side="left",
        **named,
    )


def _from_directory(directory: Path, max_positions: int) -> Any:
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", TEKKEN):
        refuse_pointer(directory / name)
    whole = (directory / "tokenizer.json").is_file()
    if whole or all((directory / name).is_file() for name in ("vocab.json", "merges.txt")):
        try:
            return _pretrained(directory, whole)
        except Exception as error:  # tokenizers raises plain Exceptions
            reason = " ".join(str(error).split())
            raise RescoldoError(f"cannot load the tokenizer: {reason:.200}", where=str(directory)) from None
    if (directory / "tokenizer.model").is_file():
        return _from_sentencepiece(directory / "tokenizer.model", max_positions)
    if (directory / TEKKEN).is_file():
        backend, vocabulary, ids, template = from_tekken(directory / TEKKEN)
        tokenizer = _wrap(backend, vocabulary, ids, max_positions)
        tokenizer.chat_template = _template_in(directory) or template or None
        return tokenizer
    raise RescoldoError(
        "there is no tokenizer: neither tokenizer.json, tokenizer.model, tekken.json nor vocab.json with merges.txt",
        where=str(directory),
        fix="fetch the model's tokenizer files into this directory",
    )


def _pretrained(directory: Path, whole: bool) -> Any:
    """Load a tokenizer with transformers: from tokenizer.json (`whole`), or from vocab.json and merges.txt with the
    class that tokenizer_config.json names (Qwen2, GPT-2 …). No code of the directory is run.

    Raises:
        Exception: of many types.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if whole:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError("vocab.json and merges.txt are not those of a byte-level BPE; tokenizer.json is needed")
    return tokenizer


def _without_what_is_beyond(tokenizer: Any, vocab_size: int) -> Any:
    """The tokenizer without added tokens beyond the model's embedding ([PAD], as other trainers add it), which no text
    may become. They stay if one is used as BOS or EOS, or if other tokens are beyond the embedding too."""
    beyond = {index: token for index, token in tokenizer.added_tokens_decoder.items() if index >= vocab_size}
    if not beyond or {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(beyond):
        return tokenizer
    if any(i >= vocab_size and i not in beyond for i in tokenizer.get_vocab().values()):
        return tokenizer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocab_size]
    names = {str(token) for token in beyond.values()}
    settings = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **{name: token for name, token in settings.items() if token not in names},
    )


def _from_sentencepiece(path: Path, max_positions: int) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise RescoldoError(f"this is not a SentencePiece model ({error!s:.100})", where=str(path)) from None
    indices = range(model.get_piece_size())
    types = [
        CONTROL
        if model.is_control(i)
        else UNKNOWN
        if model.is_unknown(i)
        else BYTE
        if model.is_byte(i)
        else UNUSED
        if model.is_unused(i)
        else NORMAL
        for i in indices
    ]
    vocabulary = Vocabulary([model.id_to_piece(i) for i in indices], types, [model.get_score(i) for i in indices])
    if not all(score == int(score) for score, kind in zip(vocabulary.scores, types, strict=True) if kind == NORMAL):
        raise RescoldoError("this SentencePiece model is not BPE: only BPE is supported", where=str(path))
    config_path = path.with_name("tokenizer_config.json")
    settings: dict[str, Any] = {}
    if config_path.is_file():
        settings = load_json(config_path, REFETCH)
    bos, eos, unk = (index if index >= 0 else None for index in (model.bos_id(), model.eos_id(), model.unk_id()))
    prefix = model.encode("a", out_type=str)[0].startswith("▁")
    backend = build_sentencepiece(
        vocabulary,
        set(),
        prefix=prefix,
        prefix_everywhere=bool(settings.get("legacy", "[INST]" not in vocabulary.tokens)),
        where=str(path),
    )
    add_begin_and_end(
        backend,
        vocabulary,
        bos if settings.get("add_bos_token", True) else None,
        eos if settings.get("add_eos_token", False) else None,
    )
    tokenizer = _wrap(backend, vocabulary, {"bos": bos, "eos": eos, "unk": unk}, max_positions)
    tokenizer.chat_template = _template_in(path.parent) or None
    return tokenizer


def _template_in(directory: Path) -> str:
    """The chat template in chat_template.jinja or tokenizer_config.json; "" if there is none."""
    template, config = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if template.is_file():
        return template.read_text("utf-8")
    said = load_json(config, REFETCH).get("chat_template") if config.is_file() else None
    return said if isinstance(said, str) else ""


def _from_gguf(path: Path, max_positions: int) -> tuple[Any, list[str]]:
    metadata, where = read_header(path).metadata, str(path)
    key = "tokenizer.ggml."
    tokens = metadata.get(key + "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise RescoldoError("the file holds no tokenizer", where=where, fix="use a complete GGUF file of the model")
    n = len(tokens)
    types = _numbers(metadata.get(key + "token_type"), n, NORMAL, key + "token_type", where)
    vocabulary = Vocabulary(tokens, [int(kind) for kind in types], [])
    ids = {
        name: _token_id(metadata, f"{key}{long}_token_id", n, where)
        for name, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    specials = {index for index in ids.values() if index is not None}
    model, pre_name = scalar(metadata, key + "model", where), scalar(metadata, key + "pre", where) or "default"
    if model == "gpt2":
        backend, pre = build_byte_level(vocabulary, _merges(metadata, where), pre_name, specials, where)
        bos_default = pre.add_bos
    elif model == "gemma4":  # SentencePiece's pieces with explicit merges; llama.cpp adds no leading space
        merges = _merges(metadata, where)
        backend = build_sentencepiece(
            vocabulary, specials, prefix=False, prefix_everywhere=False, where=where, merges=merges
        )
        bos_default = True
    elif model == "llama":
        scores = _numbers(metadata.get(key + "scores"), n, None, key + "scores", where)
        vocabulary = Vocabulary(tokens, vocabulary.types, scores)
        ids = {**{"bos": 1, "eos": 2, "unk": 0}, **{k: v for k, v in ids.items() if v is not None}}
        specials = {index for index in ids.values() if index is not None and index < n}
        backend = build_sentencepiece(
            vocabulary,
            specials,
            prefix=_flag(metadata, key + "add_space_prefix", True, where),
            prefix_everywhere="[INST]" not in tokens,
            where=where,
        )
        bos_default = True
    else:
        raise RescoldoError(f"tokenizer model {model!r:.40} is not supported; gpt2, llama and gemma4 are", where=where)
    add_begin_and_end(
        backend,
        vocabulary,
        ids["bos"] if _flag(metadata, key + "add_bos_token", bos_default, where) else None,
        ids["eos"] if _flag(metadata, key + "add_eos_token", False, where) else None,
    )
    tokenizer = _wrap(backend, vocabulary, ids, max_positions)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template.strip():
        tokenizer.chat_template = template
    names = [str(metadata.get(f"general.{part}", "")) for part in ("name", "basename", "finetune")]
    return tokenizer, names


def _merges(metadata: dict[str, Any], where: str) -> list[str]:
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise RescoldoError("metadata key tokenizer.ggml.merges is missing", where=where)
    return merges


def _numbers(value: Any, n: int, default: float | None, key: str, where: str) -> list[float]:
    if value is None and default is not None:
        return [default] * n
    if not isinstance(value, np.ndarray) or len(value) != n:
        raise RescoldoError(
            f"metadata key {key} is missing, or is not one number for each of the {n} tokens", where=where
        )
    numbers: list[float] = value.tolist()
    return numbers


def _flag(metadata: dict[str, Any], key: str, default: bool, where: str) -> bool:
    value = scalar(metadata, key, where)
    return default if value is None else bool(value)


def _token_id(metadata: dict[str, Any], key: str, n: int, where: str) -> int | None:
    value = scalar(metadata, key, where)
    if value is None or value == 0xFFFFFFFF:  # llama.cpp's value for "none"
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
        raise RescoldoError(f"metadata key {key} is {value!r:.40}, not one of the {n} tokens", where=where)
    return value


def _declared_stops(files: TokenizerFiles, config: DecoderConfig) -> tuple[int, ...]:
    """The end-of-answer tokens that the model's own files name, in their order."""
    known = (
        i for i in files.end_ids() if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < config.vocab_size
    )
    return tuple(dict.fromkeys(known))


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja into `directory`,
    each atomically. transformers 4 and 5 can read them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            if path.name not in ("tokenizer_config.json", "special_tokens_map.json"):
                content = path.read_bytes()
                write_atomic(directory / path.name, lambda temporary, c=content: temporary.write_bytes(c) and None)  # type: ignore[misc]
        settings = json.loads((Path(folder) / "tokenizer_config.json").read_bytes())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    write_json(directory / "tokenizer_config.json", settings)
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    write_json(directory / "special_tokens_map.json", tokens)
