"""Tokenizers built from bare vocabularies, token for token against llama.cpp, SentencePiece and mistral-common."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rescoldo.base import open_base
from rescoldo.base.chat_templates import INST_AS_TEXT, INST_AS_TOKEN, PLAIN, PLAIN_WITH_BOS, plain_note
from rescoldo.base.gguf_header import read_header
from rescoldo.base.sample import find_sample
from rescoldo.base.tokenizer import save_tokenizer
from rescoldo.base.tokenizer_build import PRES
from rescoldo.data.tokenize import end_of_turn, prompt_text, stop_ids
from rescoldo.errors import RescoldoError
from tests.base.make_models import CHATML, tiny_gguf, tiny_hf, tiny_tokenizer

TEXTS = [
    "Hello World, it's 2024-05-01! I'LL we've DON'T don’t 's 'S",
    "ñandú café naïve Straße ¿Qué tal? ¡Órale! El sistema debe responder en menos de 2 segundos (ISO/IEC 25010).",
    "日本語のテキスト。中文字符，한국어 텍스트",
    "Привет мир العربية עברית हिन्दी ไทย Ελληνικά",
    "🙂🚀👩‍👩‍👧 emoji \u00a0nbsp\u3000wide\u200bzero",
    "def f(x):\n    return x**2 + {'a': [1, 2.5e-3]}  # TODO\n\n\n\tif (a<=b && c!=d) {}\r\n",
    "  leading\t\ttabs   and   trailing   ",
    "a\n\n\n b\r\n\r\n c \n",
    "12345678901234 1,000,000.00 ½ ² ٣٤ 1 22 333 4444 55555",
    "functional_requirements:\n- id: FR001\n  description: 'The system shall …'\n  priority: High\n",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "$100 + 5% = ~^| <tag> a_b-c ///path//to\n/x",
    "ABCdefGHI camelCaseString HTTPServer " + "x" * 40,
    "",
]
_rng = random.Random(0)
TEXTS += ["".join(_rng.choice("aB1 .\n\t'é日🙂 -_/\r$²sT") for _ in range(30)) for _ in range(60)]


@cache
def _smollm2_vocabulary() -> dict[str, Any]:
    metadata = read_header(find_sample("smollm2")).metadata
    return {
        "model": "gpt2",
        "tokens": metadata["tokenizer.ggml.tokens"],
        "types": metadata["tokenizer.ggml.token_type"].tolist(),
        "merges": metadata["tokenizer.ggml.merges"],
    }


def _sentencepiece_vocabulary(path: Path) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path))
    indices = range(model.get_piece_size())
    return {
        "model": "llama",
        "tokens": [model.id_to_piece(i) for i in indices],
        "types": [
            3 if model.is_control(i) else 2 if model.is_unknown(i) else 6 if model.is_byte(i) else 1 for i in indices
        ],
        "scores": [model.get_score(i) for i in indices],
    }


def _mistral_file(version: str) -> Path:
    mistral_common = pytest.importorskip("mistral_common")
    name = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}[version]
    return Path(mistral_common.__file__).parent / "data" / name


def _mistral_gguf(path: Path, version: str, **metadata: Any) -> Path:
    vocabulary = _sentencepiece_vocabulary(_mistral_file(version))
    keys = {"general.name": "mistralai_Mistral-7B-Instruct", **metadata}
    tiny_gguf(
        path,
        quantization="F16",
        vocabulary=vocabulary,
        vocab_size=len(vocabulary["tokens"]),
        num_hidden_layers=1,
        metadata=keys,
        template=None,
        add_bos=True,
    )
    return path


def test_smollm2_is_llama_cpp_token_for_token() -> None:
    llama_cpp = _llama_cpp(find_sample("smollm2"))
    tokenizer = open_base("sample:smollm2").tokenizer()
    for text in TEXTS:
        ours = tokenizer.encode(text)
        assert ours == llama_cpp.tokenize(text, add_special=True), text
        assert tokenizer.decode(ours) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (
        1,
        2,
        2,
        0,
    )
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert asked.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert asked.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_smollm2_is_its_published_pre_tokenizer() -> None:
    """SmolLM2's tokenizer.json cuts with Digits and ByteLevel. (transformers' conversion of GGUF files does not: it
    leaves ½ and ² whole.)"""
    from tokenizers import Tokenizer, pre_tokenizers

    ours = open_base("sample:smollm2").tokenizer().backend_tokenizer
    theirs = Tokenizer.from_str(ours.to_str())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids, text


def _llama_cpp(path: Path, **options: Any) -> Any:
    pytest.importorskip("xllamacpp")
    from tests.base.llama_cpp import LlamaCpp

    return LlamaCpp(path, **options)


@pytest.mark.parametrize("pre", sorted(PRES))
def test_each_pre_tokenizer_is_llama_cpps(tmp_path: Path, pre: str) -> None:
    path = tiny_gguf(
        tmp_path / "m.gguf",
        quantization="Q8_0",
        pre=pre,
        vocabulary=_smollm2_vocabulary(),
        vocab_size=49152,
        num_hidden_layers=1,
        tie_word_embeddings=True,
    )
    llama_cpp, tokenizer = _llama_cpp(path), open_base(str(path)).tokenizer()
    for text in TEXTS:
        assert tokenizer.encode(text) == llama_cpp.tokenize(text, add_special=True), text


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, False), (True, True), (False, True), (False, False)])
def test_begin_and_end_tokens(tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    metadata = {"tokenizer.ggml.add_eos_token": add_eos}
    path = tiny_gguf(tmp_path / "m.gguf", metadata=metadata, add_bos=add_bos)
    llama_cpp, tokenizer = _llama_cpp(path), open_base(str(path)).tokenizer()
    ours = tokenizer.encode("the end")
    assert ours == llama_cpp.tokenize("the end", add_special=True)
    assert (ours[0] == 1, ours[-1] == 2) == (add_bos, add_eos)


def test_mistral_v1_vocabulary_in_a_gguf(tmp_path: Path) -> None:
    """The vocabulary of Mistral 7B v0.1: SentencePiece itself, llama.cpp and mistral-common agree with us."""
    from sentencepiece import SentencePieceProcessor

    path = _mistral_gguf(tmp_path / "m.gguf", "v1")
    tokenizer, llama_cpp = open_base(str(path)).tokenizer(), _llama_cpp(path)
    sentencepiece = SentencePieceProcessor(model_file=str(_mistral_file("v1")))
    for text in TEXTS:
        ours = tokenizer.encode(text, add_special_tokens=False)
        assert ours == sentencepiece.encode(text), text
        assert ours == llama_cpp.tokenize(text, add_special=False), text
        assert tokenizer.decode(ours) == text
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id == 1
    # text after a special token begins with a space of its own, as in llama.cpp
    assert tokenizer.encode("<s>a</s>b", add_special_tokens=False) == llama_cpp.tokenize("<s>a</s>b", add_special=False)


CONVERSATION = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "ok, done"},
    {"role": "user", "content": "¿y ahora?"},
]


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_supplied_mistral_template_is_mistral_commons(tmp_path: Path, version: str) -> None:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    tokenizer = open_base(str(_mistral_gguf(tmp_path / "m.gguf", version))).tokenizer()
    assert tokenizer.chat_template == {"v1": INST_AS_TEXT, "v3": INST_AS_TOKEN}[version]
    oracle = MistralTokenizer.v1() if version == "v1" else MistralTokenizer.v3()
    for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[3:], CONVERSATION[:2]):
        expected = oracle.encode_chat_completion(ChatCompletionRequest.model_validate({"messages": messages})).tokens
        ours = tokenizer.apply_chat_template(messages, return_dict=False, add_generation_prompt=True)
        assert ours == expected


def test_all_others_without_a_template_get_the_plain_one(tmp_path: Path) -> None:
    path = _mistral_gguf(tmp_path / "m.gguf", "v1", **{"general.name": "Llama 2 7B"})
    tokenizer = open_base(str(path)).tokenizer()
    assert tokenizer.chat_template == PLAIN_WITH_BOS
    assert "no chat template" in plain_note(tokenizer)
    assert "\n" not in plain_note(tokenizer)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    text = "<s>Be brief.\n\nUser: One?\n\nAssistant:\nTwo.</s>\n\nUser: Three?\n\nAssistant:\n"
    assert prompt_text(messages, tokenizer) == text
    assert _llama_cpp(path, chat_template=tokenizer.chat_template).chat(messages) == text.removeprefix("<s>")
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "</s>"
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id}
    with pytest.raises(RescoldoError, match="the roles are system, user and assistant"):
        prompt_text([*messages, {"role": "tool", "content": "4"}], tokenizer)


def test_a_tokenizer_that_begins_no_text_has_a_plain_template_without_a_beginning(tmp_path: Path) -> None:
    tokenizer = open_base(str(tiny_gguf(tmp_path / "m.gguf", template=None))).tokenizer()
    assert tokenizer.chat_template == PLAIN
    assert plain_note(open_base("sample:smollm2").tokenizer()) == ""
    question = [{"role": "user", "content": "One?"}]
    assert prompt_text(question, tokenizer) == "User: One?\n\nAssistant:\n"
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "<|im_end|>"


def test_sentencepiece_model_in_a_directory(tmp_path: Path) -> None:
    vocab_size = len(_sentencepiece_vocabulary(_mistral_file("v1"))["tokens"])
    tiny_hf(tmp_path / "instruct", "mistral", tokenizer=False, vocab_size=vocab_size, num_hidden_layers=1)
    shutil.copy(_mistral_file("v1"), tmp_path / "instruct" / "tokenizer.model")
    converted = open_base(str(tmp_path / "instruct")).tokenizer()
    from_gguf = open_base(str(_mistral_gguf(tmp_path / "m.gguf", "v1"))).tokenizer()
    assert converted.backend_tokenizer.to_str() == from_gguf.backend_tokenizer.to_str()
    assert converted.chat_template == INST_AS_TEXT  # "mistral" by its architecture, "instruct" by its name
    (tmp_path / "instruct" / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(RescoldoError, match="not a SentencePiece model"):
        open_base(str(tmp_path / "instruct")).tokenizer()


def test_directory_tokenizer_is_taken_as_it_is(tmp_path: Path) -> None:
    tokenizer = open_base(str(tiny_hf(tmp_path, "qwen2"))).tokenizer()
    for text in TEXTS:
        assert tokenizer.encode(text) == tiny_tokenizer().encode(text)
    assert tokenizer.chat_template == CHATML


def test_stop_ids(tmp_path: Path) -> None:
    """One rule: what the template, generation_config.json, config.json and GGUF's metadata name."""
    assert stop_ids(open_base("sample:smollm2").tokenizer()) == {2}
    directory = tiny_hf(tmp_path / "hf", "llama", eos_token_id=[0, 2, 99999])
    assert stop_ids(open_base(str(directory)).tokenizer()) == {0, 2}
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert stop_ids(open_base(str(directory)).tokenizer()) == {0, 2, 5}
    metadata = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 7}
    gguf = tiny_gguf(tmp_path / "m.gguf", metadata=metadata)
    assert stop_ids(open_base(str(gguf)).tokenizer()) == {0, 2, 7}


def test_the_end_that_is_learned(tmp_path: Path) -> None:
    """The template's own; without one there, EOS unless the model's files name others only."""
    directory = tiny_hf(tmp_path / "hf", "llama", eos_token_id=0)
    assert end_of_turn(open_base(str(directory)).tokenizer()) == 2, "the template writes <|im_end|>"
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    assert end_of_turn(open_base(str(directory)).tokenizer()) == 0
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert end_of_turn(open_base(str(directory)).tokenizer()) == 2


@pytest.mark.parametrize("spec", ["sample:smollm2", "tiny", "mistral"])
def test_saved_tokenizer_is_the_same(tmp_path: Path, spec: str) -> None:
    from transformers import AutoTokenizer

    if spec == "tiny":
        spec = str(tiny_gguf(tmp_path / "m.gguf"))
    elif spec == "mistral":
        spec = str(_mistral_gguf(tmp_path / "m.gguf", "v1"))
    base = open_base(spec)
    tokenizer = base.tokenizer()
    out = tmp_path / "out"
    save_tokenizer(tokenizer, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((out / "special_tokens_map.json").read_text())["eos_token"] == tokenizer.eos_token
    again = AutoTokenizer.from_pretrained(out)
    assert again.chat_template == tokenizer.chat_template
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)


def _break_json(directory: Path) -> None:
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')


def _no_files(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def _no_eos(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_json, "cannot load the tokenizer"),
        (_no_files, "neither tokenizer.json, tokenizer.model, tekken.json nor vocab.json"),
        (_no_eos, "no end-of-sequence token"),
    ],
)
def test_bad_directory_tokenizer(tmp_path: Path, damage: Any, message: str) -> None:
    base = open_base(str(tiny_hf(tmp_path, "llama")))
    damage(tmp_path)
    with pytest.raises(RescoldoError, match=message) as caught:
        base.tokenizer()
    assert "\n" not in caught.value.what


def test_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    base = open_base(str(tiny_hf(tmp_path, "llama", vocab_size=260)))
    with pytest.raises(RescoldoError, match="275 tokens, the model only 260"):
        base.tokenizer()


def test_a_pad_token_beyond_the_table(tmp_path: Path) -> None:
    """[PAD], added by other trainers: the model has no row for it, so it is ordinary text."""
    path = tiny_hf(tmp_path, "llama", vocab_size=275)
    other = tiny_tokenizer()
    other.add_special_tokens({"pad_token": "[PAD]"})
    other.save_pretrained(path)
    tokenizer = open_base(str(path)).tokenizer()
    assert max(tokenizer.get_vocab().values()) == 274
    for text in (*TEXTS, "x [PAD] y"):
        ids = tokenizer.encode(text)
        assert ids == tiny_tokenizer().encode(text)
        assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|im_end|>", CHATML)


def test_vocab_and_merges_without_tokenizer_json(tmp_path: Path) -> None:
    """As transformers itself makes a tokenizer of them: the class that the directory names decides."""
    from transformers import AutoTokenizer

    path = tiny_hf(tmp_path, "qwen2")
    content = json.loads((path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"])
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (path / "tokenizer.json").unlink()
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, theirs = open_base(str(path)).tokenizer(), AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.encode("the end") == tiny_tokenizer().encode("the end")
    assert tokenizer.chat_template == CHATML


def test_a_pointer_in_the_place_of_the_tokenizer(tmp_path: Path) -> None:
    path = tiny_hf(tmp_path, "llama")
    (path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(RescoldoError, match=r"tokenizer.json: is a Git LFS pointer"):
        open_base(str(path)).tokenizer()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pre": "unheard-of"}, "'unheard-of' is not supported"),
        ({"tokenizer": False}, "holds no tokenizer"),
        ({"vocabulary": {"model": "bert"}}, "'bert' is not supported"),
        ({"vocabulary": {"merges": ["Ġ t", "one"]}}, "not two tokens"),
        ({"vocabulary": {"merges": ["qq zz"]}}, "do not fit"),
        ({"vocabulary": {"model": "llama"}}, "scores is missing"),
        ({"metadata": {"tokenizer.ggml.eot_token_id": 5}, "vocabulary": {"tokens": ["a"] * 288}}, "'a' twice"),
    ],
)
def test_bad_gguf_tokenizer(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    vocabulary = {
        "model": "gpt2",
        "tokens": [*(f"t{i}" for i in range(287)), "t1t2"],
        "types": [3] * 3 + [1] * 285,
        "merges": ["t1 t2"],
        **arguments.pop("vocabulary", {}),
    }
    with pytest.raises(RescoldoError, match=message):
        open_base(str(tiny_gguf(tmp_path / "m.gguf", vocabulary=vocabulary, **arguments))).tokenizer()


def test_many_merges_are_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from the cache as computed; a damaged entry, or another vocabulary, is computed."""
    from rescoldo.base import merges

    letters = "abcdef"
    pieces = [*letters, *(a + b for a in letters for b in letters), "abc", "bcd", "abcd", "eeee"]
    ids, scores = {piece: i for i, piece in enumerate(pieces)}, {piece: -float(i % 7) for i, piece in enumerate(pieces)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = merges.merges(ids, set(pieces), scores)
    assert ("ab", "cd") in expected
    assert not list(tmp_path.rglob("*.pairs"))
    monkeypatch.setattr(merges, "_MANY", 10)
    assert merges.merges(ids, set(pieces), scores) == expected
    (kept,) = tmp_path.rglob("*.pairs")
    monkeypatch.setattr(merges, "_found", lambda *_: [("x", "y")])
    assert merges.merges(ids, set(pieces), scores) == expected
    monkeypatch.setattr(merges, "_found", lambda *_: expected[:1])
    assert merges.merges(ids, set(pieces) - {"ab"}, scores) == expected[:1]
    kept.write_bytes(kept.read_bytes()[:-8])
    assert merges.merges(ids, set(pieces), scores) == expected[:1]
