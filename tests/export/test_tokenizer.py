"""A tokenizer written as GGUF metadata: llama.cpp and our reader make the tokens that the original makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rescoldo.base import open_base
from rescoldo.base.gguf_header import read_header
from rescoldo.base.tokenizer import save_tokenizer
from rescoldo.base.tokenizer_build import PRES
from rescoldo.errors import RescoldoError
from rescoldo.export import export_run
from tests.base.make_models import tiny_gguf, tiny_hf
from tests.base.test_tokenizer import TEXTS, _mistral_file, _sentencepiece_vocabulary, _smollm2_vocabulary
from tests.export.common import make_run

pytest.importorskip("xllamacpp")
from tests.base.llama_cpp import LlamaCpp

TEMPLATE = "{% for m in messages %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


def _directory(path: Path, vocabulary: dict[str, Any], base: str = "llama", **gguf: Any) -> Path:
    """A Hugging Face directory with the tokenizer of that vocabulary as transformers saves it."""
    sizes = {"vocab_size": len(vocabulary["tokens"]) + 5, "num_hidden_layers": 1, "max_position_embeddings": 4096}
    own = {"rope": "gemma4", "kinds": "sf", "num_hidden_layers": 2, "vocab_size_per_layer_input": sizes["vocab_size"]}
    tiny_hf(path, base, tokenizer=False, **{**sizes, **(own if base == "gemma4_text" else {})})
    sizes["vocab_size"] -= 5
    file = tiny_gguf(path.with_suffix(".gguf"), vocabulary=vocabulary, template=TEMPLATE, **sizes, **gguf)
    save_tokenizer(open_base(str(file)).tokenizer(), path)
    return path


def _merged(tmp_path: Path, base: Path) -> Path:
    run = make_run(tmp_path / "run", str(base))
    export_run(run, "merged-gguf", dtype="F16")
    return run / "export/merged-gguf/model-F16.gguf"


def _check(base: Path, merged: Path) -> None:
    original, ours, llama_cpp = (open_base(str(base)).tokenizer(), open_base(str(merged)).tokenizer(), LlamaCpp(merged))
    for text in TEXTS:
        expected = original.encode(text)
        assert ours.encode(text) == expected, text
        assert llama_cpp.tokenize(text, add_special=True) == expected, text
    for name in ("bos", "eos", "unk", "pad"):
        assert getattr(ours, f"{name}_token_id") == getattr(original, f"{name}_token_id")
    assert ours.chat_template == original.chat_template


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "default"])
def test_byte_level(tmp_path: Path, pre: str) -> None:
    base = _directory(tmp_path / "base", _smollm2_vocabulary(), pre=pre, add_bos=pre == "llama-bpe")
    _check(base, _merged(tmp_path, base))


def test_sentencepiece_from_a_tokenizer_json(tmp_path: Path) -> None:
    """The scores come from the order of the merges."""
    base = _directory(tmp_path / "base", _sentencepiece_vocabulary(_mistral_file("v1")), add_bos=True)
    assert (base / "tokenizer.json").is_file()
    _check(base, _merged(tmp_path, base))


def test_sentencepiece_of_gemma4(tmp_path: Path) -> None:
    """llama.cpp takes the merges themselves, and puts no space before a text."""
    vocabulary = _sentencepiece_vocabulary(_mistral_file("v1"))
    base = _directory(
        tmp_path / "base", vocabulary, "gemma4_text", add_bos=True, metadata={"tokenizer.ggml.add_space_prefix": False}
    )
    merged = _merged(tmp_path, base)
    assert read_header(merged).metadata["tokenizer.ggml.model"] == "gemma4"
    _check(base, merged)


def test_each_pre_tokenizer_is_told_from_the_others() -> None:
    from rescoldo.base.tokenizer_build import pre_tokenizer
    from rescoldo.export.gguf_tokenizer import PROBE

    cuts: dict[str, list[str]] = {}
    for name, pre in PRES.items():
        cuts.setdefault(json.dumps([pre_tokenizer(pre).pre_tokenize_str(PROBE), pre.ignore_merges]), []).append(name)
    for names in cuts.values():
        assert len({PRES[name].patterns for name in names}) == 1, names


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    base = _directory(tmp_path / "base", _smollm2_vocabulary())
    content = json.loads((base / "tokenizer.json").read_bytes())
    content["pre_tokenizer"]["pretokenizers"][0] = {
        "type": "Split", "pattern": {"Regex": "e"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RescoldoError, match="splits text into words"):
        _merged(tmp_path, base)
    assert not (tmp_path / "run/export/merged-gguf").exists()
