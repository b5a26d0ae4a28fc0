"""A tiny random model whose answers are constrained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from rescoldo.constrain import Grammar
from rescoldo.data.tokenize import stop_ids
from rescoldo.engine.generate import generate
from rescoldo.engine.types import Generated, Sampling
from rescoldo.models.loaded import Loaded, load_for_inference
from tests.base.make_models import tiny_hf


@cache
def tiny() -> Loaded:
    """One for all tests; its answers are noise."""
    base = tiny_hf(Path(mkdtemp()) / "base", "llama", max_position_embeddings=4096, intermediate_size=96)
    return load_for_inference(str(base), "fp32")


def ids(text: str) -> list[int]:
    """Token ids of a prompt."""
    return list(tiny().tokenizer(text, add_special_tokens=False)["input_ids"])


def answer(
    grammar: Grammar | None, *, seed: int = 0, temperature: float = 1.0, n: int = 3500, prompt: str = "Say it"
) -> tuple[str, Generated]:
    """(text, row) of one answer."""
    loaded = tiny()
    constrain = (lambda: loaded.constraint(grammar)) if grammar else None
    sampling = Sampling(temperature, 1.0, n, seed)
    (row,) = generate(loaded.model, [ids(prompt)], sampling, stop_ids(loaded.tokenizer), None, constrain)
    return text_of(row.tokens), row


def text_of(tokens: Sequence[int]) -> str:
    """The tokens' text."""
    return str(tiny().tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
