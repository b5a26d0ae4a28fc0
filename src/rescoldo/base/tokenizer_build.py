"""Fast tokenizers from a bare vocabulary, as in GGUF files and SentencePiece models.

The supported architectures use two kinds: byte-level BPE ("gpt2" in GGUF: SmolLM2, Llama 3, Qwen, Tekken) and
SentencePiece BPE with byte fallback, by its pieces' scores ("llama" in GGUF: Llama 2, Mistral 7B, Gemma up to 3) or by
merges ("gemma4").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rescoldo.base.merges import merges
from rescoldo.errors import RescoldoError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of GGUF and SentencePiece

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pre:
    """How a byte-level BPE splits text into words before merging.

    Attributes:
        patterns: regular expressions, applied one after the other; each match is a piece, and so is the text in
            between.
        ignore_merges: a word that is a token becomes that token without applying merges.
        add_bos: the default if the file does not say.
        nfc: the text is first normalized to Unicode NFC.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_SMOLLM = Pre((r"\p{N}", _GPT2))
PRES = {  # by tokenizer.ggml.pre; the patterns are those of llama.cpp, which are those of the models' own tokenizers
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": Pre((_GPT2,)),
    "olmo": Pre((_GPT2,)),
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "codeshell": _SMOLLM,
    "llama-bpe": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama3": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama-v3": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "smaug-bpe": Pre((_LLAMA3,)),
    "qwen2": Pre((_QWEN2,), nfc=True),
    "deepseek-r1-qwen": Pre((_QWEN2,)),
    "deepseek-coder": Pre((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "tekken": Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
}


@dataclass(frozen=True)
class Vocabulary:
    """A bare vocabulary: token i's text, type (see the constants above) and, for SentencePiece, score."""

    tokens: list[str]
    types: list[int]
    scores: list[float]


def _add_special(backend: Any, vocabulary: Vocabulary, specials: set[int]) -> None:
    """Make control tokens special (matched in text, skipped in decoding), and user-defined ones matched as a whole."""
    from tokenizers import AddedToken

    special, plain = [], []
    for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if not token:
            continue
        if kind in (UNKNOWN, CONTROL) or index in specials:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    backend.add_tokens(plain)
    backend.add_special_tokens(special)


def _numbered(tokens: list[str], where: str) -> dict[str, int]:
    """Token → id. A text with two ids is refused, since the second could never be produced."""
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        seen: set[str] = set()
        double = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise RescoldoError(f"the vocabulary holds the token {double!r} twice", where=where)
    return ids


def pre_tokenizer(pre: Pre) -> Any:
    """The `tokenizers` pre-tokenizer that splits text according to `pre` and maps its bytes as byte-level BPE does."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pairs(merges: list[str], where: str) -> list[tuple[str, str]]:
    """The merges of a GGUF file ("left right"), in order.

    Raises:
        RescoldoError: one has another format.
    """
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or not left or not right:
            raise RescoldoError(f"merge {merge!r:.80} is not two tokens with a space between", where=where)
        pairs.append((left, right))
    return pairs


@contextlib.contextmanager
def _fitting(where: str) -> Iterator[None]:
    """Turns errors from combining vocabulary and merges into RescoldoError."""
    try:
        yield
    except Exception as error:  # tokenizers raises a plain Exception for a merge outside the vocabulary
        raise RescoldoError(f"vocabulary and merges do not fit: {error!s:.200}", where=where) from None


def build_byte_level(
    vocabulary: Vocabulary, merges: list[str], pre: str, specials: set[int], where: str
) -> tuple[Any, Pre]:
    """A byte-level BPE `tokenizers.Tokenizer`, and its pre-tokenizer's properties.

    Raises:
        RescoldoError: an unknown pre-tokenizer, or merges that do not fit the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    known = PRES.get(pre)
    if known is None:
        raise RescoldoError(
            f"pre-tokenizer {pre!r:.80} is not supported", where=where, fix=f"supported: {', '.join(sorted(PRES))}"
        )
    ids, pairs = _numbered(vocabulary.tokens, where), _pairs(merges, where)
    with _fitting(where):
        model = models.BPE(ids, pairs, ignore_merges=known.ignore_merges)
    backend = Tokenizer(model)
    if known.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(known)
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, vocabulary, specials)
    return backend, known


def _merges(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of pieces to merge, in order."""
    kinds = vocabulary.types
    usable = {token for token, index in ids.items() if kinds[index] in (NORMAL, USER_DEFINED, UNUSED)}
    scores = {token: vocabulary.scores[index] for token, index in ids.items() if kinds[index] == NORMAL}
    return merges(ids, usable, scores)


def build_sentencepiece(
    vocabulary: Vocabulary,
    specials: set[int],
    *,
    prefix: bool,
    prefix_everywhere: bool,
    where: str,
    merges: list[str] | None = None,
) -> Any:
    """A SentencePiece BPE with byte fallback as a `tokenizers.Tokenizer`.

    Args:
        merges: from the file; None: they are computed from the pieces' scores.
        prefix: a space is put before the text.
        prefix_everywhere: also before text that follows a special token (Llama 2 and Mistral's first tokenizer), and
            not only at the very beginning.

    Raises:
        RescoldoError: scores that do not belong to BPE, merges that do not fit the vocabulary, or a repeated token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = _numbered(vocabulary.tokens, where)
    unknown = next(
        (token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == UNKNOWN), None
    )
    byte_fallback = BYTE in vocabulary.types
    pairs = _merges(vocabulary, ids) if merges is None else _pairs(merges, where)
    with _fitting(where):
        model = models.BPE(ids, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
    backend = Tokenizer(model)
    if prefix and prefix_everywhere:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif prefix:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    _add_special(backend, vocabulary, specials)
    return backend


def add_begin_and_end(backend: Any, vocabulary: Vocabulary, bos: int | None, eos: int | None) -> None:
    """Make `backend` add bos before and eos after each text that it encodes with special tokens; None: nothing."""
    from tokenizers import processors

    ends = [(vocabulary.tokens[index], index) for index in (bos, eos) if index is not None]
    if not ends:
        return
    single = [f"{vocabulary.tokens[bos]}:0"] if bos is not None else []
    single.append("$A:0")
    if eos is not None:
        single.append(f"{vocabulary.tokens[eos]}:0")
    pair = [*single, *(part.replace("$A", "$B")[:-1] + "1" for part in single)]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)
