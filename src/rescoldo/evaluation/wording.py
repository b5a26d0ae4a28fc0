"""The verdict and what it rests on, in words, in the report's language."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rescoldo.evaluation.language import ENGLISH, Language
from rescoldo.evaluation.measures import MEASURES
from rescoldo.invocation import NAME

LABELS = {
    "repeated_items": "repeated items",
    "shared_items": "items in other answers, too",
    "distinct_trigrams": "distinct trigrams",
    "known_pairs": "word pairs known from answers",
    "input_words_used": "input's words used",
    "input_words_in_items": "input's words in the items",
    "new_figures": "figures not in the input",
    "new_names": "names not in the input",
    "copied_from_input": "words copied from the input",
    "copied_from_training": "words copied from training",
    "length": "length ({unit})",
    "perplexity": "perplexity (base model)",
}
REASONS = {
    ("repeated_items", "above"): "items that repeat each other",
    ("shared_items", "above"): "items that stand in other answers, too",
    ("distinct_trigrams", "below"): "the same phrases again and again",
    ("input_words_used", "below"): "few of the input's words",
    ("known_pairs", "below"): "words in an order that no answer has",
    ("input_words_in_items", "below"): "items with few of the input's words",
    ("new_figures", "below"): "fewer figures",
    ("new_figures", "above"): "more figures that the input does not have",
    ("new_names", "below"): "fewer names",
    ("new_names", "above"): "more names that the input does not have",
    ("copied_from_input", "above"): "long runs copied from the input",
    ("copied_from_training", "above"): "long runs copied from training answers",
    ("length", "below"): "less text",
    ("length", "above"): "more text",
    ("perplexity", "below"): "more predictable to the base model",
    ("perplexity", "above"): "less predictable to the base model",
}
SHOWN = 3  # reasons that a sentence names


def label(measure: str, say: Language, unit: str = "words") -> str:
    """What a measure is called."""
    return say(LABELS[measure], unit=say(unit))


def value_of(measure: str, value: float, say: Language) -> str:
    """A measure's value as it is written."""
    if MEASURES[measure].share:
        return say.percent(value)
    return say.number(value, ".1f" if measure == "perplexity" or value % 1 else ".0f")


def range_of(measure: str, limits: Mapping[str, float | None], say: Language) -> str:
    """A measure's normal range."""
    low, high = limits["low"], limits["high"]
    if low is None and high is not None:
        return say("≤ {high}", high=value_of(measure, high, say))
    if high is None and low is not None:
        return say("≥ {low}", low=value_of(measure, low, say))
    assert low is not None
    assert high is not None
    return say("{low} to {high}", low=value_of(measure, low, say), high=value_of(measure, high, say))


def why_outside(row: Mapping[str, Any], reference: Mapping[str, Any] | None, say: Language) -> list[str]:
    """Why an answer is unlike the dataset's own, a line for each measure."""
    found = row.get("content")
    if not found or not reference:
        return []
    return [
        say(
            "{measure}: {value} (normal: {range})",
            measure=label(name, say, reference["length_unit"]),
            value=value_of(name, found["measures"][name], say),
            range=range_of(name, reference["ranges"][name], say),
        )
        for name in found["outside"]
        if name in reference["ranges"]
    ]


def verdict_sentence(decision: Mapping[str, Any], say: Language = ENGLISH, program: str = NAME) -> str:
    """The verdict: what to do, why, and how to know more where that is needed."""
    if decision["verdict_code"] == KEEP:
        return say.message(decision, "sentence")
    verdict, content = VERDICTS[decision["verdict_code"]], decision["content"]
    facts = {
        "model": decision["finetuned"],
        "reference": decision["reference"],
        "score": say.percent(decision["means"][decision["finetuned"]], 1),
        "points": say.points(decision["difference"]),
    }
    form = say("{model} has learned the form ({score}, {points} points against {reference})", **facts)
    sentence = say(verdict.sentence, form=form, because=verdict.because(content["evidence"], say), **facts)
    if decision.get("caveat"):
        sentence += " " + say("On the form: {caveat}.", caveat=say.message(decision, "caveat"))
    following = "" if verdict.settled else _following(content, say, program)
    return f"{sentence} {following}".rstrip()


def _doubts(evidence: Sequence[Mapping[str, Any]], say: Language) -> str:
    found = next(one for one in evidence if one["finding"] == "doubtful")
    return say(
        "its content is doubtful: {k} of {n} answers are unlike the dataset's own, most often: {reasons}",
        k=say.number(found["doubtful"]),
        n=say.number(found["answers"]),
        reasons=say.listed(most_frequent(found["by_measure"], say)),
    )


def _preferred(evidence: Sequence[Mapping[str, Any]], say: Language) -> str:
    who, others = _judged(evidence, say, "better", 1)
    return say("{who} preferred its content to that of {others}", who=who, others=others)


def _not_preferred(evidence: Sequence[Mapping[str, Any]], say: Language) -> str:
    who, others = _judged(evidence, say, "worse", -1)
    return say("{who} preferred the content of {others}", who=who, others=others)


def _judged(evidence: Sequence[Mapping[str, Any]], say: Language, finding: str, side: int) -> tuple[str, str]:
    """Who has found so, and between the model and which others; `side`: 1 where it is preferred, -1 where they are."""
    one = next(one for one in evidence if one["finding"] == finding)
    pairs = [pair for pair in one["pairs"] if pair["settled"] and (pair["win_rate"] - 0.5) * side > 0]
    who = say("people") if one["kind"] == "people" else say("the judge {model}", model=one["model"])
    return who, say.listed([pair["b"] for pair in pairs])


@dataclass(frozen=True)
class Verdict:
    """What people are told where the form is learned: a template, why, and whether more evidence would change nothing
    that matters."""

    sentence: str
    because: Callable[[Sequence[Mapping[str, Any]], Language], str]
    settled: bool = False


KEEP = "keep"  # the rule's own verdict
_FOR_NOW = "Keep {reference} for now: {form}, but {because}."
VERDICTS = {
    "adopt": Verdict("Adopt {model}: {form}, and {because}.", _preferred, settled=True),
    "content_worse": Verdict("Keep {reference}: {form}, but {because}.", _not_preferred, settled=True),
    "content_doubtful": Verdict(_FOR_NOW, _doubts),
    "content_unknown": Verdict(_FOR_NOW, lambda evidence, say: say("nobody has judged its content yet")),
    "content_unsettled": Verdict(_FOR_NOW, lambda evidence, say: say("whether its content is better is not settled")),
}


def most_frequent(by_measure: Mapping[str, Mapping[str, int]], say: Language) -> list[str]:
    """The most frequent reasons why answers are unlike the dataset's own."""
    sides = [(name, side, count) for name, counts in by_measure.items() for side, count in counts.items()]
    return [say(REASONS[name, side]) for name, side, _ in sorted(sides, key=lambda one: -one[2])[:SHOWN]]


def _following(content: Mapping[str, Any], say: Language, program: str) -> str:
    """What to do next."""
    missing = {one["kind"]: one for one in content["missing"]}
    ways = []
    if "people" in missing:
        one = missing["people"]
        command = command_line(program, one["command"] or ["review", "FILE"])
        votes = one["votes"]
        ways.append(say("`{command}` (about {votes} votes)", command=command, votes=say.number(votes))
                    if votes else f"`{command}`")  # fmt: skip
    if "judge" in missing:
        ways.append(say("the comparison with `--judge MODEL`"))
    return say("To know more: {ways}.", ways=say(" or ").join(ways)) if ways else ""


def evidence_lines(decision: Mapping[str, Any], say: Language) -> list[str]:
    """What is known of form and content, a line for each piece of evidence."""
    lines = [
        say(
            "form: {form} ({reasons})",
            form=say("learned") if decision["adopt"] else say("not enough"),
            reasons="; ".join(say.messages(decision, "reasons")[:2]),
        )
    ]
    for one in decision["content"]["evidence"]:
        lines += _EVIDENCE[one["kind"]](one, say)
    return lines


def _people(one: Mapping[str, Any], say: Language) -> list[str]:
    lines = [_pair(say("people"), pair, say) for pair in one["pairs"]]
    counts = say("{votes} votes of {n} reviewers", votes=say.number(one["votes"]), n=say.number(one["reviewers"]))
    alpha = (one.get("agreement") or {}).get("alpha")
    if alpha is not None:
        counts += ", " + say("agreement (Krippendorff's alpha) {alpha}", alpha=say.number(alpha, ".2f"))
    return [*lines, say("content: {text}", text=counts)]


def _judge(one: Mapping[str, Any], say: Language) -> list[str]:
    exam = one["exam"]
    low, high = exam["interval"]
    facts = {
        "model": one["model"],
        "share": say.percent(exam["accuracy"]),
        "low": say.percent(low),
        "high": say.percent(high),
        "n": say.number(exam["n"]),
    }
    text = (
        "the judge {model} told {share} of {n} damaged answers from the dataset's own (95 % interval {low} to {high})"
    )
    known = say(text, **facts)
    if one["finding"] == "unfit":
        return [say("content: {text}", text=say("{known}: unfit, not counted", known=known))]
    who = say("the judge {model}", model=one["model"])
    return [say("content: {text}", text=known), *(_pair(who, pair, say) for pair in one["pairs"])]


def _pair(who: str, pair: Mapping[str, Any], say: Language) -> str:
    if not pair["wins"] + pair["ties"] + pair["losses"]:
        text = say(
            "{who}: {a} against {b}: no two answers to choose from (identical, or failed)",
            who=who, a=pair["a"], b=pair["b"],
        )  # fmt: skip
        return say("content: {text}", text=text)
    low, high = pair["interval"]
    text = say(
        "{who}: {a} against {b} {wins} won, {ties} equal, {losses} lost, win rate {rate} "
        "(95 % interval {low} to {high})",
        who=who,
        a=pair["a"],
        b=pair["b"],
        wins=say.number(pair["wins"]),
        ties=say.number(pair["ties"]),
        losses=say.number(pair["losses"]),
        rate=say.percent(pair["win_rate"]),
        low=say.percent(low),
        high=say.percent(high),
    )
    if not pair["settled"]:
        more = pair.get("more_votes")
        text += ", " + (say("about {n} more would settle it", n=say.number(more)) if more else say("not settled"))
    return say("content: {text}", text=text)


def _diagnostics(one: Mapping[str, Any], say: Language) -> list[str]:
    low, high = one["interval_95"]
    text = say(
        "{k} of {n} answers are unlike the dataset's own (share {share}, 95 % interval {low} to {high}; "
        "among the dataset's own answers {own})",
        k=say.number(one["doubtful"]),
        n=say.number(one["answers"]),
        share=say.percent(one["share"]),
        low=say.percent(low),
        high=say.percent(high),
        own=say.percent(one["reference_share"]),
    )
    tail = "" if one["finding"] == "doubtful" else ": " + say("no sign against it, and no proof for it")
    return [say("content: {text}", text=text + tail)]


_EVIDENCE = {"people": _people, "judge": _judge, "diagnostics": _diagnostics}


def missing_lines(decision: Mapping[str, Any], say: Language, program: str = NAME) -> list[str]:
    """What would tell more of the content, a line for each."""
    return [_MISSING[one["kind"]](one, say, program) for one in decision["content"]["missing"]]


def _no_people(one: Mapping[str, Any], say: Language, program: str) -> str:
    command = command_line(program, one["command"] or ["review", "FILE"])
    return say("missing: votes of people: {command}", command=command)


def _no_judge(one: Mapping[str, Any], say: Language, program: str) -> str:
    arguments = one["command"]
    command = command_line(program, arguments) if arguments else say("the comparison with `--judge MODEL`")
    return say("missing: a judge that has passed its exam: {command}", command=command)


def _no_answers(one: Mapping[str, Any], say: Language, program: str) -> str:
    return say("missing: answers of the dataset's own, to hold these against")


def _no_rival(one: Mapping[str, Any], say: Language, program: str) -> str:
    others = say.listed(list(one["rivals"]))
    return say("missing: another model whose answers can be read: those of {others} mostly cannot", others=others)


_MISSING = {"people": _no_people, "judge": _no_judge, "diagnostics": _no_answers, "readable": _no_rival}


def command_line(program: str, arguments: Sequence[str]) -> str:
    """A command as it is typed."""
    return f"{program} {shlex.join(arguments)}"


def content_rows(models: Mapping[str, Any], reference: Mapping[str, Any] | None, say: Language) -> list[list[str]]:
    """The table of the diagnostics: label, normal range, the dataset's own, each model; medians, and the share of
    doubtful answers with its interval."""
    if not any(part.get("content") for part in models.values()):
        return []
    columns = [(reference or {}).get("content"), *(part.get("content") for part in models.values())]
    unit = reference["length_unit"] if reference else "words"
    rows = []
    for name in MEASURES:
        found = [((column or {}).get("measures") or {}).get(name) for column in columns]
        if not any(found):
            continue
        limits = reference["ranges"].get(name) if reference else None
        normal = range_of(name, limits, say) if limits else "–"
        rows.append([label(name, say, unit), normal, *(_spread(name, one, say) for one in found)])
    rows.append([say("unlike the dataset's own"), "", *(_doubtful(column) for column in columns)])
    rows.append([say("95 % interval of that share"), "", *(_interval(column, say) for column in columns)])
    return rows


def _spread(name: str, found: Mapping[str, float] | None, say: Language) -> str:
    return value_of(name, found["median"], say) if found else "–"


def _doubtful(column: Mapping[str, Any] | None) -> str:
    return f"{column['doubtful']}/{column['answers']}" if column and column["answers"] else "–"


def _interval(column: Mapping[str, Any] | None, say: Language) -> str:
    if not column or not column["interval_95"]:
        return "–"
    low, high = column["interval_95"]
    return f"{100 * low:.0f}–{say.percent(high)}"


def content_head(names: Sequence[str], say: Language) -> list[str]:
    """The head of that table."""
    return [say("median"), say("normal"), say("dataset"), *names]
