"""Comparison documents for tests of votes."""

from __future__ import annotations

from typing import Any

from tests.data.examples import record


def comparison(n: int = 4, repeats: int = 1, **texts: Any) -> dict[str, Any]:
    """Two models, "baseline" and "finetuned", on n inputs; texts: name → function of the example."""

    def rows(name: str) -> list[dict[str, Any]]:
        answer = texts.get(name, lambda example: f"{name[:1]} says {example}")
        return [
            {
                "example": example,
                "repeat": repeat,
                "concept": record(example)["concept"],
                "text": f"{answer(example)}{' again' * repeat}",
                "score": 0.5,
                "components": {},
                "notes": [],
                "places": [],
                "ended": True,
                "tokens": 1,
                "seconds": 0.1,
            }
            for repeat in range(repeats)
            for example in range(n)
        ]

    names = ("baseline", "finetuned")
    return {
        "metadata": {"role": "ba", "dataset": "none.jsonl"},
        "models": {name: {"scores": {"mean": 0.5}, "predictions": rows(name)} for name in names},
        "comparison": {
            "ranking": [
                {"rank": 1, "model": "finetuned", "mean": 0.9, "difference_to_baseline": 0.4},
                {"rank": 2, "model": "baseline", "mean": 0.5, "difference_to_baseline": 0.0},
            ],
            "decision": {"winner": "finetuned"},
        },
    }


def whole_comparison(n: int, **texts: Any) -> dict[str, Any]:
    """The same as the program itself makes it, with scores, tests and a decision."""
    from dataclasses import replace

    from rescoldo.engine.types import Sampling
    from rescoldo.evaluation import build_comparison, evaluate
    from tests.evaluation.fake import ROLE, Fake

    models = {
        name: evaluate(Fake(lambda i, p, name=name: replace(p, text=texts[name](i))), [record(i) for i in range(n)],
                       ROLE, Sampling())
        for name in ("baseline", "finetuned")
    }  # fmt: skip
    return build_comparison(models, baseline="baseline", finetuned="finetuned", metadata={"role": "ba"})
