"""A comparison or evaluation as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rescoldo.evaluate.marks import mark_lines
from rescoldo.evaluate.report import TEST_HEAD, component_rows, diagnostic_rows, score_rows, test_rows
from rescoldo.evaluate.score import doubts
from rescoldo.role.yaml_text import YamlRefusedError, parse_yaml, strip_fence

BINS = 10  # of the scores' distribution


def page(document: Mapping[str, Any]) -> str:
    """The page of an evaluation or comparison document."""
    models, comparison = document["models"], document.get("comparison")
    names = list(models)
    places = {row["model"]: row for row in comparison["ranking"]} if comparison else {}
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title="Comparison" if comparison else "Evaluation",
            meta=document.get("metadata", {}),
            decision=comparison and comparison["decision"],
            models=[
                {
                    "name": name,
                    "spec": answers_by(part),
                    "scores": part["scores"],
                    "warnings": part.get("warnings", []),
                    "place": places.get(name),
                    "bins": distribution([row["score"] for row in part["predictions"]]),
                }
                for name, part in models.items()
            ],
            names=names,
            scores=score_rows(models),
            diagnostics=diagnostic_rows(models),
            components=[
                (row[0], list(zip(names, row[1:], _values(models, row[0]), strict=True)))
                for row in component_rows(models)
            ],
            test_head=TEST_HEAD,
            tests=test_rows(comparison) if comparison else [],
            concepts=concepts(models),
        )
    )


def answers_by(part: Mapping[str, Any]) -> str:
    """What answered, for people: a run's directory, or the base model's own name where the adapter was left out."""
    spec, base = str(part.get("spec", "")), part.get("base_model")
    return str(base) if base and part.get("adapter") is False else spec


def rendered(text: str) -> dict[str, Any] | list[Any] | None:
    """An answer as the document that it is, its scalars as text; None where it is none."""
    try:
        value = parse_yaml(strip_fence(text))
    except YamlRefusedError:
        return None
    return value if isinstance(value, dict | list) else None


def distribution(scores: Sequence[float]) -> list[dict[str, Any]]:
    """How many scores lie in each tenth; the last one is 90 % to 100 %, both included."""
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, int(score * BINS + 1e-9))] += 1
    most = max(counts)
    return [
        {"label": f"{10 * i} to {10 * i + 10} %", "count": count, "share": 100 * count / most}
        for i, count in enumerate(counts)
    ]


def concepts(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each concept with all its answers: in the order of the models, repeats behind each other."""
    found: dict[int, dict[str, Any]] = {}
    for number, (name, part) in enumerate(models.items()):
        for row in part["predictions"]:
            lines, rest = mark_lines(row["text"], row["notes"], row.get("places", ()))
            entry = found.setdefault(row["example"], {"concept": row["concept"], "answers": []})
            entry["answers"].append(
                {
                    "model": name,
                    "number": number,
                    "row": row,
                    "document": rendered(row["text"]),
                    "lines": lines,
                    "rest": rest,
                    "doubts": doubts(row),
                }
            )
    return [found[example] for example in sorted(found)]


def _values(models: Mapping[str, Any], component: str) -> list[float]:
    return [100 * part["component_scores"].get(component, 0.0) for part in models.values()]


@cache
def environment(*folders: Path) -> Environment:
    """Templates of pages: this folder's (answer.html.j2 and style.css.j2 are for answers), and other folders'."""
    return Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
