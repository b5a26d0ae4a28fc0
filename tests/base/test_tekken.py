"""A tekken.json alone: the tokens and the chat format of mistral-common."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from rescoldo.base import open_base
from rescoldo.errors import RescoldoError
from tests.base.make_models import tiny_hf

pytest.importorskip("mistral_common")
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

PATTERN = r"[^\r\n\p{L}\p{N}]?[\p{L}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIALS = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    "[SUFFIX]",
]
NEW_SPECIALS = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]", "[CALL_ID]", "[ARGS]"]
MERGES = [b" t", b"he", b" the", b"in", b"er", b" a", b"re", b"on", "é".encode(), "漢".encode()]
TALKS = [
    [("system", "Be brief.\nAnd kind."), ("user", "Who is there? 123 漢字, été")],
    [("user", "a"), ("assistant", "the one"), ("user", "b")],
    [("system", "S"), ("user", "a"), ("assistant", " c"), ("user", "  d")],
]


def _tekken(path: Path, version: str) -> None:
    tokens = [bytes([i]) for i in range(256)] + MERGES
    specials = SPECIALS if version == "v3" else SPECIALS + NEW_SPECIALS
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": len(tokens) + 24,
        "default_num_special_tokens": 24,
        "version": version,
    }
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for i, token in enumerate(tokens)
    ]
    special = [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(specials)]
    path.write_text(json.dumps({"config": config, "vocab": vocabulary, "special_tokens": special}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_hf(tmp_path, "mistral", tokenizer=False, vocab_size=320)


@pytest.mark.parametrize("version", ["v3", "v7", "v13"])
def test_tokens_and_chats_are_mistral_commons(model: Path, version: str) -> None:
    _tekken(model / "tekken.json", version)
    ours, theirs = open_base(str(model)).tokenizer(), MistralTokenizer.from_file(str(model / "tekken.json"))
    for talk in TALKS:
        messages: list[Any] = [{"role": role, "content": content} for role, content in talk]
        expected = theirs.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
        assert ours.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected
        text = " ".join(content for _, content in talk)
        inner = theirs.instruct_tokenizer.tokenizer.encode(text, bos=True, eos=False)
        assert ours(text)["input_ids"] == inner
        assert ours.decode(inner, skip_special_tokens=True) == text
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 11)


def test_a_template_beside_it_comes_first(model: Path) -> None:
    _tekken(model / "tekken.json", "v7")
    (model / "chat_template.jinja").write_text("{{ bos_token }}mine")
    assert open_base(str(model)).tokenizer().chat_template == "{{ bos_token }}mine"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": {"pattern": 5}, "vocab": [], "special_tokens": []}'])
def test_a_damaged_file_is_refused(model: Path, content: str) -> None:
    (model / "tekken.json").write_text(content)
    with pytest.raises(RescoldoError) as caught:
        open_base(str(model)).tokenizer()
    assert "tekken.json" in str(caught.value)
