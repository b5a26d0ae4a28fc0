"""Text as it streams: whole characters, nothing behind a stop string, and together what the tokenizer decodes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.serve.text import TextStream
from tests.base.make_models import tiny_tokenizer

TEXTS = ["plain", "ñandú 漢字 🙂👩‍👩‍👧", "a  b\n\n c", "", "x" * 30 + "é"]


@cache
def _sentencepiece() -> Any:
    import tempfile
    from pathlib import Path

    from rescoldo.base import open_base
    from tests.base.test_tokenizer import _mistral_gguf

    with tempfile.TemporaryDirectory() as folder:
        return open_base(str(_mistral_gguf(Path(folder) / "m.gguf", "v1"))).tokenizer()


def tokenizers() -> list[Any]:
    return [tiny_tokenizer(), _sentencepiece()]


@pytest.mark.parametrize("which", [0, 1])
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_pieces_are_the_text(which: int, text: str) -> None:
    tokenizer = tokenizers()[which]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(tokens=st.lists(st.integers(0, 274), max_size=40))
def test_any_tokens_are_decoded_and_nothing_is_lost(tokens: list[int]) -> None:
    """Random bytes, which are mostly no characters."""
    tokenizer = tiny_tokenizer()
    stream = TextStream(tokenizer)
    text = "".join([stream.push(token) for token in tokens] + [stream.finish()])
    whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text.replace("�", "") == whole.replace("�", "")


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abcé\n", max_size=40),
    stops=st.lists(st.text("abcé\n", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_stop_strings(text: str, stops: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    stream = TextStream(tokenizer, stops)
    given_out = ""
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        given_out += stream.push(token)
        assert not any(stop in given_out for stop in stops)
    given_out += stream.finish()
    seen = next((text[:n] for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)), None)
    assert stream.stopped == (seen is not None), "it ends with the first stop string that is complete"
    assert given_out == (text if seen is None else seen[: min(seen.find(stop) for stop in stops if stop in seen)])
