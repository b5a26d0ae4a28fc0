"""A comparison or evaluation as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rescoldo.evaluation.language import ENGLISH, Language
from rescoldo.evaluation.marks import mark_lines
from rescoldo.evaluation.report import (
    FACTS,
    component_rows,
    confusion_tables,
    diagnostic_rows,
    judged,
    language_of,
    paired_head,
    paired_rows,
    sampled_difference_head,
    sampled_difference_rows,
    sampled_note,
    sampled_rows,
    score_rows,
    verdict_lines,
)
from rescoldo.evaluation.score import doubts
from rescoldo.evaluation.wording import content_head, content_rows, why_outside
from rescoldo.role.yaml_text import YamlRefusedError, parse_yaml, strip_fence
from rescoldo.words import printable

BINS = 10  # of the scores' distribution


def page(document: Mapping[str, Any]) -> str:
    """The page of an evaluation or comparison document."""
    models, comparison, reference = document["models"], document.get("comparison"), document.get("reference")
    say, decision = language_of(document), judged(document)
    sentence, warnings, evidence = verdict_lines(document, say) if decision else ("", [], [])
    places = {row["model"]: row for row in comparison["ranking"]} if comparison else {}
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            say=say,
            title=say("Comparison") if comparison else say("Evaluation"),
            facts=[
                f"{say(key.replace('_', ' '))}: {value}"
                for key in FACTS
                if (value := document.get("metadata", {}).get(key)) is not None
            ],
            verdict=decision and decision["verdict_code"],
            sentence=sentence,
            decision_warnings=warnings,
            evidence=evidence,
            content_head=content_head(names := list(models), say),
            content=content_rows(models, reference, say),
            models=[
                {
                    "name": name,
                    "spec": answers_by(part),
                    "scores": part["scores"],
                    "warnings": say.messages(part, "warnings"),
                    "place": places.get(name),
                    "bins": distribution([row["score"] for row in part["predictions"]], say),
                }
                for name, part in models.items()
            ],
            names=names,
            scores=score_rows(models, say),
            diagnostics=diagnostic_rows(models, say),
            components=[
                (row[0], list(zip(names, row[1:], _values(models, row[0]), strict=True)))
                for row in component_rows(models, say)
            ],
            sampled=sampled_rows(models, say),
            sampled_note=sampled_note(models, say),
            difference_head=sampled_difference_head(say),
            sampled_differences=sampled_difference_rows(comparison, say) if comparison else [],
            confusion=confusion_tables(models, say),
            test_head=paired_head(say),
            tests=paired_rows(comparison, say) if comparison else [],
            concepts=concepts(models, reference, say),
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


def distribution(scores: Sequence[float], say: Language = ENGLISH) -> list[dict[str, Any]]:
    """How many scores lie in each tenth; the last one is 90 % to 100 %, both included."""
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, int(score * BINS + 1e-9))] += 1
    most = max(counts)
    return [
        {
            "label": say("{low} to {high}", low=str(10 * i), high=f"{10 * i + 10} %"),
            "count": count,
            "share": 100 * count / most,
        }
        for i, count in enumerate(counts)
    ]


def concepts(
    models: Mapping[str, Any], reference: Mapping[str, Any] | None = None, say: Language = ENGLISH
) -> list[dict[str, Any]]:
    """Each concept with all its answers: in the order of the models, repeats behind each other."""
    found: dict[int, dict[str, Any]] = {}
    for number, (name, part) in enumerate(models.items()):
        for row in part["predictions"]:
            notes = say.messages(row, "notes")
            lines, rest = mark_lines(row["text"], notes, row.get("places", ()))
            entry = found.setdefault(row["example"], {"concept": row["concept"], "answers": []})
            entry["answers"].append(
                {
                    "model": name,
                    "number": number,
                    "row": row,
                    "document": rendered(row["text"]),
                    "lines": lines,
                    "rest": rest,
                    "notes": notes,
                    "doubts": [*map(say, doubts(row)), *why_outside(row, reference, say)],
                }
            )
    return [found[example] for example in sorted(found)]


def _values(models: Mapping[str, Any], component: str) -> list[float]:
    return [100 * part["component_scores"].get(component, 0.0) for part in models.values()]


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@cache
def environment(*folders: Path) -> Environment:
    """Templates of pages: this folder's (answer.html.j2 and style.css.j2 are for answers), and other folders'.

    Texts are escaped, and shown as `printable` has them; only in a field where text is edited it has to stay as it is
    (`| e`).
    """
    return Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
