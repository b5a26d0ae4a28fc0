"""An evaluation or comparison for people: Markdown, and tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_SCORES = {
    "mean": "mean",
    "median": "median",
    "std": "standard deviation",
    "min": "min",
    "max": "max",
    "pass_rate_0.8": "share ≥ 0.8",
    "pass_rate_0.9": "share ≥ 0.9",
    "perfect_rate_1.0": "share = 1.0",
}


def markdown(document: Mapping[str, Any]) -> str:
    """The Markdown report of an evaluation (one model) or comparison."""
    models, meta = document["models"], document.get("metadata", {})
    comparison = document.get("comparison")
    lines = ["# Comparison" if comparison else "# Evaluation", ""]
    if comparison and comparison.get("decision"):
        decision = comparison["decision"]
        lines += [f"**{_md(decision['sentence'])}**", ""]
        lines += [f"⚠️ {_md(warning)}\n" for warning in decision["warnings"]]
        lines += [*(f"- {_md(reason)}" for reason in decision["reasons"]), ""]
    facts = [
        f"{key}: `{value}`" for key in ("dataset", "examples", "role", "date") if (value := meta.get(key)) is not None
    ]
    lines += [" · ".join(facts), ""] if facts else []
    names = list(models)
    lines += ["## Scores", "", *_table(["", *names], score_rows(models)), ""]
    lines += ["## Components", "", *_table(["", *names], component_rows(models)), ""]
    lines += ["## Beside the score", "", *_table(["", *names], diagnostic_rows(models)), ""]
    warnings = [f"- {_md(name)}: {_md(text)}" for name in names for text in models[name].get("warnings", [])]
    lines += [*warnings, ""] if warnings else []
    if comparison:
        ranking = [
            [str(row["rank"]), row["model"], f"{row['mean']:.1%}", f"{100 * row['difference_to_baseline']:+.1f}"]
            for row in comparison["ranking"]
        ]
        lines += ["## Ranking", "", *_table(["rank", "model", "mean", "points against the baseline"], ranking), ""]
        lines += ["## Paired tests", "", *_table(TEST_HEAD, test_rows(comparison)), ""]
    for name in names:
        lines += [f"## What cost points: {_md(name)}", ""]
        costly = [row for row in models[name]["predictions"] if row["notes"]]
        if not costly:
            lines += ["Nothing.", ""]
        for row in costly:
            lines += [f"- **{row['score']:.2f}** {_md(_short(row['concept'], 100))}"]
            lines += [f"  - {_md(note)}" for note in row["notes"][:8]]
            lines += [f"  - … and {len(row['notes']) - 8} more"] if len(row["notes"]) > 8 else []
        lines += [""] if costly else []
    return "\n".join(lines)


def print_evaluation(document: Mapping[str, Any], console: Console) -> None:
    """Scores, components and warnings of an evaluation as a table."""
    models = document["models"]
    rows = [*score_rows(models), None, *component_rows(models), None, *diagnostic_rows(models)]
    _print_table(console, ["", *models], rows)
    _print_warnings(models, console)


def print_comparison(document: Mapping[str, Any], console: Console) -> None:
    """A comparison as tables: scores side by side, paired tests, the decision."""
    print_evaluation(document, console)
    comparison = document["comparison"]
    _print_table(console, TEST_HEAD, test_rows(comparison))
    decision = comparison.get("decision")
    if decision:
        console.print(decision["sentence"], style="bold", markup=False, highlight=False)
        for warning in decision["warnings"]:
            console.print(f"⚠️  {warning}", markup=False, highlight=False)
        for reason in decision["reasons"]:
            console.print(f"  · {reason}", markup=False, highlight=False)


TEST_HEAD = ["difference", "mean", "95 % interval", "Wilcoxon p", "Cohen's d", "wins / ties / losses"]


def test_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """One row a pair of models, columns as in the table of paired tests; differences in points of 100."""
    rows = []
    for name, test in comparison["statistical_tests"].items():
        effect = comparison["effect_sizes"][name]
        low, high = test["interval_95"]
        d = f"{effect['cohens_d']:.2f} ({effect['size']})" if effect["cohens_d"] is not None else effect["size"]
        p = "no difference" if test["wilcoxon"]["note"] else _p(test["wilcoxon"]["p_value"])
        rows.append(
            [
                name,
                f"{100 * test['mean_difference']:+.1f}",
                f"{100 * low:+.1f} … {100 * high:+.1f}",
                p,
                d,
                f"{test['wins']} / {test['ties']} / {test['losses']}",
            ]
        )
    return rows


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def score_rows(models: Mapping[str, Any]) -> list[list[str]]:
    """One row a figure of the scores, one column a model, the label first."""
    rows = [[label, *(f"{part['scores'][name]:.1%}" for part in models.values())] for name, label in _SCORES.items()]
    found = [(part.get("perplexity") or {}).get("perplexity") for part in models.values()]
    if any(value is not None for value in found):
        rows.append(["perplexity", *(f"{value:.3f}" if value is not None else "–" for value in found)])
    return rows


def component_rows(models: Mapping[str, Any]) -> list[list[str]]:
    """One row a component, one column a model, the label first."""
    names = list(dict.fromkeys(name for part in models.values() for name in part["component_scores"]))
    found = [part["component_scores"] for part in models.values()]
    return [[name, *(f"{scores[name]:.1%}" if name in scores else "–" for scores in found)] for name in names]


def diagnostic_rows(models: Mapping[str, Any]) -> list[list[str]]:
    """One row a diagnostic, one column a model, the label first."""

    def row(label: str, values: Iterable[str]) -> list[str]:
        return [label, *values]

    found = [part["diagnostics"] for part in models.values()]
    counts = [len(part["predictions"]) for part in models.values()]
    return [
        row("ended by itself", (f"{d['ended']}/{n}" for d, n in zip(found, counts, strict=True))),
        row("tokens an answer", (f"{d['mean_tokens']:.0f}" for d in found)),
        row("input's words used", (_or_dash(d["concept_words_used"], ".0%") for d in found)),
        row("longest run copied (words)", (_or_dash(d["longest_copied_run"], "d") for d in found)),
        row("valid document, but text around it", (_or_dash(d.get("documents_within_text"), "d") for d in found)),
        row("descriptions repeated", (str(d["duplicate_descriptions"]) for d in found)),
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print_table(console: Console, head: Sequence[str], rows: Sequence[list[str] | None]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index, name in enumerate(head):
        table.add_column(Text(name), justify="right" if index else "left")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(Text, row))
    console.print(table)


def _print_warnings(models: Mapping[str, Any], console: Console) -> None:
    for name, part in models.items():
        for text in part.get("warnings", []):
            console.print(f"⚠️  {name}: {text}", markup=False, highlight=False)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_md, head)) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(map(_md, row)) + " |" for row in rows]


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _md(text: str) -> str:
    """Text that stays text in Markdown."""
    text = " ".join(text.split())
    for mark in "\\`*_<>[]|":
        text = text.replace(mark, "\\" + mark)
    return text
