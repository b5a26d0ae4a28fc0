"""An evaluation or comparison for people: Markdown, and tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rescoldo.evaluation.language import ENGLISH, Language, language
from rescoldo.evaluation.wording import (
    content_head,
    content_rows,
    evidence_lines,
    missing_lines,
    verdict_sentence,
    why_outside,
)
from rescoldo.invocation import NAME, program

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
FACTS = ("dataset", "examples", "role", "training_set", "date")
_PASSES = ("0.9", "1.0")  # scores whose pass@k reports show; the JSON has more
_NOTES = 8  # that a Markdown report shows of one answer


def language_of(document: Mapping[str, Any]) -> Language:
    """The language that a document's reports are written in."""
    return language(str(document.get("metadata", {}).get("lang") or ENGLISH.code))


def judged(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The decision of a comparison with its verdict; None where there is none to be told."""
    decision = (document.get("comparison") or {}).get("decision")
    return decision if decision and "verdict" in decision else None


def verdict_lines(document: Mapping[str, Any], say: Language, called: str = NAME) -> tuple[str, list[str], list[str]]:
    """The verdict in a sentence, the warnings, and what it rests on with what is missing."""
    decision = judged(document)
    assert decision is not None
    lines = [*evidence_lines(decision, say), *missing_lines(decision, say, called)]
    told = {f"{name}: {text}" for name, part in document["models"].items() for text in part.get("warnings", [])}
    reasons = zip(decision["reasons"], say.messages(decision, "reasons"), strict=True)
    lines += [shown for reason, shown in list(reasons)[2:] if reason not in told]
    return verdict_sentence(decision, say, called), say.messages(decision, "warnings"), lines


def markdown(document: Mapping[str, Any]) -> str:
    """The Markdown report of an evaluation (one model) or comparison."""
    say = language_of(document)
    models, meta, reference = document["models"], document.get("metadata", {}), document.get("reference")
    comparison = document.get("comparison")
    lines = [f"# {say('Comparison') if comparison else say('Evaluation')}", ""]
    if judged(document):
        sentence, warnings, evidence = verdict_lines(document, say)
        lines += [f"**{_md(sentence)}**", ""]
        lines += [f"⚠️ {_md(warning)}\n" for warning in warnings]
        lines += [*(f"- {_md(line)}" for line in evidence), ""]
    facts = [f"{say(key.replace('_', ' '))}: `{value}`" for key in FACTS if (value := meta.get(key)) is not None]
    lines += [" · ".join(facts), ""] if facts else []
    names = list(models)
    measured = content_rows(models, reference, say)
    if measured:
        lines += [f"## {say('The content beside the dataset')}", ""]
        lines += [*_table(content_head(names, say), measured), ""]
    lines += [f"## {say('Scores')}", "", *_table(["", *names], score_rows(models, say)), ""]
    lines += [f"## {say('Components')}", "", *_table(["", *names], component_rows(models, say)), ""]
    lines += [f"## {say('Beside the score')}", "", *_table(["", *names], diagnostic_rows(models, say)), ""]
    for title, head, rows in confusion_tables(models, say):
        lines += [f"## {_md(title)}", "", *_table(head, rows), ""]
    warnings = [f"- {_md(name)}: {_md(text)}" for name in names for text in say.messages(models[name], "warnings")]
    lines += [*warnings, ""] if warnings else []
    if several := sampled_rows(models, say):
        lines += [f"## {say('Several samples')}", "", _md(sampled_note(models, say)), ""]
        lines += [*_table(["", *names], several), ""]
        if comparison:
            lines += [*_table(sampled_difference_head(say), sampled_difference_rows(comparison, say)), ""]
    if comparison:
        ranking = [
            [str(row["rank"]), row["model"], say.percent(row["mean"], 1), say.points(row["difference_to_baseline"])]
            for row in comparison["ranking"]
        ]
        head = [say("rank"), say("model"), say("mean"), say("points against the baseline")]
        lines += [f"## {say('Ranking')}", "", *_table(head, ranking), ""]
        lines += [f"## {say('Paired tests')}", "", *_table(paired_head(say), paired_rows(comparison, say)), ""]
    for name in names:
        lines += _answers(name, models[name]["predictions"], reference, say)
    return "\n".join(lines)


def _answers(
    name: str, rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None, say: Language
) -> list[str]:
    """What is to be said of a model's answers: doubts, and what cost points."""
    lines = [f"## {say('What is wrong with the answers of {model}', model=_md(name))}", ""]
    shown = []
    for row in rows:
        notes = say.messages(row, "notes")
        more = [say("… and {n} more", n=say.number(len(notes) - _NOTES))] if len(notes) > _NOTES else []
        why = [*why_outside(row, reference, say), *notes[:_NOTES], *more]
        if why:
            shown += [f"- **{say.number(row['score'], '.2f')}** {_md(_short(row['concept'], 100))}"]
            shown += [f"  - {_md(line)}" for line in why]
    return [*lines, *(shown or [say("Nothing.")]), ""]


def print_evaluation(document: Mapping[str, Any], console: Console) -> None:
    """Scores, components and warnings of an evaluation as tables, the content beside the dataset's own answers; in the
    language of the document's reports."""
    models, say = document["models"], language_of(document)
    rows = [*score_rows(models, say), None, *component_rows(models, say), None, *diagnostic_rows(models, say)]
    _print_table(console, ["", *models], rows)
    measured = content_rows(models, document.get("reference"), say)
    if measured:
        _print_table(console, content_head(list(models), say), measured)
    if several := sampled_rows(models, say):
        _print_table(console, ["", *models], several)
        console.print(sampled_note(models, say), markup=False, highlight=False)
        if comparison := document.get("comparison"):
            _print_table(console, sampled_difference_head(say), sampled_difference_rows(comparison, say))
    for title, head, labelled in confusion_tables(models, say):
        console.print(title, markup=False, highlight=False)
        _print_table(console, head, labelled)
    _print_warnings(models, console, say)


def print_comparison(document: Mapping[str, Any], console: Console) -> None:
    """A comparison as tables: scores side by side, paired tests; and, last, what it rests on and the verdict."""
    say = language_of(document)
    print_evaluation(document, console)
    _print_table(console, paired_head(say), paired_rows(document["comparison"], say))
    if judged(document):
        sentence, warnings, evidence = verdict_lines(document, say, program())
        for warning in warnings:
            console.print(f"⚠️  {warning}", markup=False, highlight=False)
        for line in evidence:
            console.print(f"  · {line}", markup=False, highlight=False)
        console.print(sentence, style="bold", markup=False, highlight=False)


def sampled_rows(models: Mapping[str, Any], say: Language = ENGLISH) -> list[list[str]]:
    """One row a figure of models that answered each input several times, with its 95 % interval; [] where none did."""
    parts = [part.get("sampled") for part in models.values()]
    known = [part for part in parts if part]
    if not known:
        return []
    rows = []
    for k in sorted({step["k"] for part in known for step in part["by_k"]}):
        steps = [next((step for step in (part or {}).get("by_k", ()) if step["k"] == k), None) for part in parts]
        label = say("mean") if k == 1 else say("best of {k}", k=str(k))
        rows.append([label, *(_estimate(step and step["best_of"], say) for step in steps)])
        for limit in _PASSES:
            label = say("pass@{k}, score ≥ {limit}", k=str(k), limit=say.number(float(limit), ".1f"))
            rows.append([label, *(_estimate(step and step["pass"].get(limit), say) for step in steps)])
    shares = [(part or {}).get("of_sampling") for part in parts]
    rows.append([say("uncertainty that more samples would take away"), *(_share_or_dash(one, say) for one in shares)])
    return rows


def sampled_note(models: Mapping[str, Any], say: Language = ENGLISH) -> str:
    """What is to be known of the best of several answers."""
    known = [part["sampled"] for part in models.values() if part.get("sampled")]
    if all(one["selectable"] for one in known):
        return say(
            "The metric needs no right answer: whoever uses the model can choose the best of several answers by it."
        )
    return say("The metric needs the right answer: whoever uses the model cannot choose by it, so the best is a bound.")


def sampled_difference_head(say: Language) -> list[str]:
    """The head of the table of differences between models that answered several times."""
    return [say("difference"), say("figure"), say("points"), say("95 % interval")]


def sampled_difference_rows(comparison: Mapping[str, Any], say: Language = ENGLISH) -> list[list[str]]:
    """One row a pair of models and a figure of more than one answer; differences in points of 100."""
    rows = []
    for name, steps in (comparison.get("sampled") or {}).items():
        for step in steps[1:]:
            k = str(step["k"])
            figures = [(say("best of {k}", k=k), step["best_of"])]
            figures += [
                (say("pass@{k}, score ≥ {limit}", k=k, limit=say.number(float(limit), ".1f")), step["pass"][limit])
                for limit in _PASSES
            ]
            for label, one in figures:
                low, high = one["interval_95"]
                rows.append([name, label, say.points(one["mean"]), f"{say.points(low)} … {say.points(high)}"])
    return rows


def _estimate(found: Mapping[str, Any] | None, say: Language) -> str:
    if not found:
        return "–"
    low, high = (say.percent(bound) for bound in found["interval_95"])
    return f"{say.percent(found['mean'], 1)} ({low} … {high})"


def paired_head(say: Language) -> list[str]:
    """The head of the table of paired tests."""
    names = ("difference", "mean", "95 % interval", "Wilcoxon p", "Cohen's d", "wins / ties / losses")
    return [say(name) for name in names]


def paired_rows(comparison: Mapping[str, Any], say: Language = ENGLISH) -> list[list[str]]:
    """One row a pair of models, columns as in the table of paired tests; differences in points of 100."""
    rows = []
    for name, test in comparison["statistical_tests"].items():
        effect = comparison["effect_sizes"][name]
        low, high = test["interval_95"]
        size = say(effect["size"])
        d = f"{say.number(effect['cohens_d'], '.2f')} ({size})" if effect["cohens_d"] is not None else size
        p = say("no difference") if test["wilcoxon"]["note"] else _p(test["wilcoxon"]["p_value"], say)
        rows.append(
            [
                name,
                say.points(test["mean_difference"]),
                f"{say.points(low)} … {say.points(high)}",
                p,
                d,
                f"{test['wins']} / {test['ties']} / {test['losses']}",
            ]
        )
    return rows


def _p(value: float, say: Language) -> str:
    return say.number(value, ".3f") if value >= 0.001 else f"{value:.1e}"


_CHOICES = {
    "accuracy": "accuracy of the likeliest label",
    "ece_raw": "calibration error of the labels' probabilities",
    "ece": "the same, scaled by a temperature",
}


def score_rows(models: Mapping[str, Any], say: Language = ENGLISH) -> list[list[str]]:
    """One row a figure of the scores, one column a model, the label first."""
    rows = [
        [say(label), *(say.percent(part["scores"][name], 1) for part in models.values())]
        for name, label in _SCORES.items()
    ]
    for key, label in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
        labels = [(part.get("labels") or {}).get(key) for part in models.values()]
        if any(value is not None for value in labels):
            rows.append([say(label), *("–" if value is None else say.percent(value, 1) for value in labels)])
    for key, label in _CHOICES.items():
        measured = [(part.get("choices") or {}).get(key) for part in models.values()]
        if any(value is not None for value in measured):
            rows.append([say(label), *("–" if value is None else say.percent(value, 1) for value in measured)])
    found = [(part.get("perplexity") or {}).get("perplexity") for part in models.values()]
    if any(value is not None for value in found):
        rows.append([say("perplexity"), *(_or_dash(value, ".3f", say) for value in found)])
    return rows


def confusion_tables(
    models: Mapping[str, Any], say: Language = ENGLISH
) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, rows) for each model whose answers are labels: a row for each class of the dataset, with what was
    answered, and its precision, recall and F1."""
    tables = []
    for name, part in models.items():
        labels = part.get("labels")
        if not labels:
            continue
        classes = [row["label"] for row in labels["classes"]]
        head = [say("label"), *classes, say("another answer"), say("precision"), say("recall"), "F1"]
        rows = [
            [
                row["label"],
                *map(str, row["answers"]),
                str(row["other"]),
                *(say.percent(figures[key], 1) for key in ("precision", "recall", "f1")),
            ]
            for row, figures in zip(labels["confusion"], labels["classes"], strict=True)
        ]
        tables.append((say("What {model} answered to each label", model=name), head, rows))
    return tables


def component_rows(models: Mapping[str, Any], say: Language = ENGLISH) -> list[list[str]]:
    """One row a component, one column a model, the label first."""
    names = list(dict.fromkeys(name for part in models.values() for name in part["component_scores"]))
    found = [part["component_scores"] for part in models.values()]
    return [[name, *(say.percent(scores[name], 1) if name in scores else "–" for scores in found)] for name in names]


def diagnostic_rows(models: Mapping[str, Any], say: Language = ENGLISH) -> list[list[str]]:
    """One row a diagnostic, one column a model, the label first."""

    def row(label: str, values: Iterable[str]) -> list[str]:
        return [say(label), *values]

    found = [part["diagnostics"] for part in models.values()]
    counts = [len(part["predictions"]) for part in models.values()]
    return [
        row("ended by itself", (f"{d['ended']}/{n}" for d, n in zip(found, counts, strict=True))),
        row("tokens an answer", (say.number(d["mean_tokens"], ".0f") for d in found)),
        row("input's words used", (_share_or_dash(d["concept_words_used"], say) for d in found)),
        row("longest run copied (words)", (_or_dash(d["longest_copied_run"], "d", say) for d in found)),
        row("valid document, but text around it", (_or_dash(d.get("documents_within_text"), "d", say) for d in found)),
        row("descriptions repeated", (say.number(d["duplicate_descriptions"]) for d in found)),
    ]


def _or_dash(value: float | None, spec: str, say: Language) -> str:
    return "–" if value is None else say.number(value, spec)


def _share_or_dash(value: float | None, say: Language) -> str:
    return "–" if value is None else say.percent(value)


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


def _print_warnings(models: Mapping[str, Any], console: Console, say: Language) -> None:
    for name, part in models.items():
        for text in say.messages(part, "warnings"):
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
