"""A valid document with text around it: the score stays 0, and the reader is told what it would be."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.evaluation import build_comparison, evaluate, write_document
from rescoldo.evaluation.embedded import MAX_CANDIDATES, documents_within
from rescoldo.models.predictor import Prediction
from tests.data.examples import record
from tests.evaluation.fake import ROLE, Fake

RECORDS = [record(i) for i in range(6)]
WRAPS = {
    "sentence before": "Sure, here it is.\n\n```yaml\n{}```",
    "sentence after": "```yaml\n{}```\nLet me know what you think!",
    "both, tildes": "Here.\n~~~\n{}~~~\nBye.",
    "second of two": "First the command\n```sh\nls\n```\nthen\n```yaml\n{}```",
    "no fence": "Here are the requirements you asked for.\n\n{}",
    "no fence, words behind": "Here they are.\n\n{}\n\nI hope that this helps.",
    "front matter": "---\n{}---\nThese are all requirements.",
}


def wrapped(wrap: str) -> Fake:
    return Fake(lambda index, prediction: replace(prediction, text=wrap.replace("{}", prediction.text + "\n")))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_text_around_a_document(wrap: str) -> None:
    part = evaluate(wrapped(wrap), RECORDS, ROLE, Sampling())
    assert part["scores"]["max"] == 0.0, "the score is as documented"
    assert [row["diagnostics"]["document_score"] for row in part["predictions"]] == [1.0] * 6
    assert part["diagnostics"]["documents_within_text"] == 6
    assert part["warnings"][0].startswith("6 of 6 answers hold a valid document with text around it")
    assert "the mean would be 100.0%" in part["warnings"][0]


def test_json_in_a_sentence() -> None:
    def answer(index: int, prediction: Prediction) -> Prediction:
        return replace(prediction, text="Here: " + json.dumps(RECORDS[index]["requirements"]) + " That is all.")

    part = evaluate(Fake(answer), RECORDS, ROLE, Sampling())
    assert part["diagnostics"]["documents_within_text"] == 6


@pytest.mark.parametrize("text", ["I would rather not.", "", "```\nls -l\n```", "title: a\n: b: c", "{ no } [ json ]"])
def test_no_document(text: str) -> None:
    part = evaluate(Fake(lambda index, prediction: replace(prediction, text=text)), RECORDS, ROLE, Sampling())
    assert part["diagnostics"]["documents_within_text"] == 0
    assert not any("text around" in warning for warning in part["warnings"])


def test_the_reader_is_told_everywhere(tmp_path: Path) -> None:
    """All that the baseline lacks is that somebody takes its sentence off: adopting the other one is not the answer."""
    models = {
        "base": evaluate(wrapped(WRAPS["sentence before"]), RECORDS, ROLE, Sampling()),
        "finetuned": evaluate(Fake(), RECORDS, ROLE, Sampling()),
    }
    document = build_comparison(models, baseline="base", finetuned="finetuned")
    decision: dict[str, Any] = document["comparison"]["decision"]
    assert decision["adopt"], "the rule's own word stays"
    assert "text around valid documents taken off (base: 6 of 6)" in decision["warnings"][0]
    assert "keep base" in decision["warnings"][0]
    for path in write_document(document, tmp_path / "c.json"):
        text = path.read_text()
        assert "valid document, but text around it" in text
        assert "6 of 6 answers hold a valid document" in text
        assert "taking it off needs no training" in text


def test_long_texts_do_not_hang() -> None:
    started = time.monotonic()
    for text in ("```\na: b\n```\n" * 50_000, "`" * 300_000, "a:\n\n" * 50_000, "{" * 300_000 + "}", "```\n" * 100_000):
        assert len(list(documents_within(text))) <= MAX_CANDIDATES
        evaluate(Fake(lambda i, p, text=text: replace(p, text=text + "\nx")), RECORDS[:1], ROLE, Sampling())  # type: ignore[misc]
    assert time.monotonic() - started < 10
