"""What people are told: form, by the rule on scores, and content, by those who can judge it. "Adopt" needs both.

Form is what the metric measures, and a base model with a grammar has it for nothing. Content is judged by people who
vote blind, by a judge model that has passed its exam, or, where neither is there, by the diagnostics of `content`,
which can raise a doubt and never take one away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rescoldo.evaluation.decision import WORTH_IT
from rescoldo.evaluation.wording import KEEP, verdict_sentence

READABLE = 0.5  # mean score of a model's documents below which it is no achievement to be preferred to it
VOTES = 30  # that are proposed where there are none: ten minutes
EVIDENCE = ("people", "judge", "diagnostics")


def constrained_name(baseline: str) -> str:
    """The name of the baseline with constrained answers, which a comparison adds."""
    return f"{baseline}_constrained"


def with_verdict(document: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison with its verdict: `decision` gets content, verdict_code and verdict, from all that is in the
    document now. To be called again when votes or judgements have been added.

    decision.content:
        status: good, worse, doubtful, unsettled or unknown.
        rivals: the models that the content has to be better than: the one in use (M2, else M1), and any other that
            has the form as well.
        evidence: what it rests on; of people and each judge {kind, finding (better, worse, unsettled, or unfit),
            pairs (from the fine-tuned model's side), …}, of the diagnostics {kind, finding (doubtful, normal), …}.
        missing: what would tell more, each {kind, command (arguments of the program) or None, …}.

    verdict_code: adopt; keep (the rule says so); or, the form being learned, content_worse, content_doubtful,
        content_unsettled, content_unknown. verdict: in a sentence.
    """
    comparison = document.get("comparison") or {}
    decision = comparison.get("decision")
    if not decision or "finetuned" not in decision:  # none, or made before there were verdicts
        return dict(document)
    content = judge_content(document)
    code = KEEP
    if decision["adopt"]:
        code = "adopt" if content["status"] == "good" else f"content_{content['status']}"
    settled = {**decision, "content": content, "verdict_code": code}
    settled["verdict"] = verdict_sentence(settled)
    return {**document, "comparison": {**comparison, "decision": settled}}


def judge_content(document: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the content of the model that is decided on; see with_verdict."""
    models, decision = document["models"], document["comparison"]["decision"]
    finetuned, reference = decision["finetuned"], decision["reference"]
    rivals = _rivals(models, finetuned, reference)
    evidence = []
    people = document.get("people")
    if people and people.get("votes"):
        facts = {"reviewers": people["reviewers"], "votes": people["votes"], "agreement": people.get("agreement")}
        evidence.append({"kind": "people", **facts, **_finding(people["pairs"], finetuned, rivals)})
    for judge in document.get("judges") or ():
        facts = {"model": judge["model"], "exam": judge["exam"], "position_bias": judge.get("position_bias")}
        if judge["exam"]["passed"]:
            evidence.append({"kind": "judge", **facts, **_finding(judge["pairs"], finetuned, rivals)})
        else:
            evidence.append({"kind": "judge", **facts, "finding": "unfit", "pairs": []})
    measured = models[finetuned].get("content") or {}
    if "doubtful_model" in measured:
        keys = ("answers", "doubtful", "share", "interval_95", "p_value", "by_measure")
        facts = {key: measured[key] for key in keys}
        finding = "doubtful" if measured["doubtful_model"] else "normal"
        of_references = document["reference"]["content"]["share"] if document.get("reference") else None
        evidence.append({"kind": "diagnostics", "finding": finding, **facts, "reference_share": of_references})
    return {
        "status": _status(evidence, [_readable(models[name]) for name in rivals]),
        "rivals": rivals,
        "evidence": evidence,
        "missing": _missing(document, evidence, finetuned, rivals),
    }


def _rivals(models: Mapping[str, Any], finetuned: str, reference: str) -> list[str]:
    """The model in use, and each other whose form is as good as the fine-tuned one's: there, form decides nothing."""
    enough = models[finetuned]["scores"]["mean"] - WORTH_IT + 1e-9
    as_good = [name for name, part in models.items() if part["scores"]["mean"] > enough]
    return [reference, *(name for name in as_good if name not in (finetuned, reference))]


def _readable(part: Mapping[str, Any]) -> bool:
    """Whether most of a model's answers, at least with the text around them taken off, are documents at all."""
    known = part.get("diagnostics", {}).get("mean_score_of_documents", 0.0)
    return max(float(part["scores"]["mean"]), float(known)) >= READABLE


def _finding(pairs: Sequence[Mapping[str, Any]], finetuned: str, rivals: Sequence[str]) -> dict[str, Any]:
    """What votes say: better than all rivals, worse than some model, or unsettled; and their pairs, turned round."""
    own = [turned for pair in pairs if (turned := _turned(pair, finetuned))]
    sides = {pair["b"]: _side(pair) for pair in own}
    if any(side < 0 for side in sides.values()):
        finding = "worse"
    elif all(sides.get(name, 0) > 0 for name in rivals):
        finding = "better"
    else:
        finding = "unsettled"
    return {"finding": finding, "pairs": own}


def _turned(pair: Mapping[str, Any], first: str) -> dict[str, Any] | None:
    """A pair as seen from the model `first`; None where it is not in it."""
    if pair["a"] == first:
        return dict(pair)
    if pair["b"] != first:
        return None
    low, high = pair["interval"]
    other = {"a": first, "b": pair["a"], "wins": pair["losses"], "losses": pair["wins"]}
    return {**pair, **other, "win_rate": 1 - pair["win_rate"], "interval": [1 - high, 1 - low]}


def _side(pair: Mapping[str, Any]) -> int:
    """1 where the first model of a pair is preferred for certain, -1 where the second is, 0 where that is open."""
    low, high = pair["interval"]
    if not pair["settled"]:
        return 0
    return 1 if low > 0.5 else -1 if high < 0.5 else 0


def _status(evidence: Sequence[Mapping[str, Any]], readable: Sequence[bool]) -> str:
    """People before judges, judges before diagnostics. `readable`: of each rival, whether its answers can be read.

    To be preferred to answers that cannot be read shows form again: where all rivals' are so, a doubt of the
    diagnostics stands.
    """
    findings = {kind: [one["finding"] for one in evidence if one["kind"] == kind] for kind in EVIDENCE}
    doubtful = "doubtful" in findings["diagnostics"]
    people, judges = findings["people"], [finding for finding in findings["judge"] if finding != "unfit"]
    if "worse" in people:
        return "worse"
    if "better" in people:
        return "doubtful" if doubtful and not any(readable) else "good"
    if "worse" in judges:
        return "unsettled" if "better" in judges else "worse"
    if doubtful:
        return "doubtful"
    if "better" in judges:
        return "good"
    return "unsettled" if people or judges else "unknown"


def _missing(
    document: Mapping[str, Any], evidence: Sequence[Mapping[str, Any]], finetuned: str, rivals: Sequence[str]
) -> list[dict[str, Any]]:
    """What would tell more of the content."""
    output = str(document.get("metadata", {}).get("output") or "") or None
    missing: list[dict[str, Any]] = []
    people = next((one for one in evidence if one["kind"] == "people"), None)
    if people is None or people["finding"] == "unsettled":
        pairs = {pair["b"]: pair for pair in people["pairs"]} if people else {}
        open_ = [name for name in rivals if name not in pairs or not pairs[name]["settled"]]
        needed = [pairs[name].get("more_votes") if name in pairs else VOTES for name in open_]
        votes = sum(filter(None, needed)) if needed and all(needed) else None
        command = ["review", output] if output else None
        missing.append({"kind": "people", "rivals": open_, "votes": votes, "command": command})
    if not any(one["kind"] == "judge" and one["finding"] != "unfit" for one in evidence):
        command = _compare_again(document) if output else None
        missing.append({"kind": "judge", "command": [*command, "--judge", "MODEL"] if command else None})
    if not any(one["kind"] == "diagnostics" for one in evidence):
        missing.append({"kind": "diagnostics", "command": None})
    if not any(_readable(document["models"][name]) for name in rivals):
        missing.append({"kind": "readable", "rivals": list(rivals), "command": None})
    return missing


def _compare_again(document: Mapping[str, Any]) -> list[str] | None:
    """The arguments that make this comparison again, asking for no answer again; None where it cannot be told."""
    models, meta = document["models"], document["metadata"]
    decision = document["comparison"]["decision"]
    specs = {name: _spec(part) for name, part in models.items() if name != constrained_name(decision["baseline"])}
    sampling = models[decision["finetuned"]].get("sampling")
    if not all(specs.values()) or not sampling or not meta.get("dataset"):
        return None
    baseline = decision["baseline"]
    words = ["compare", "--baseline", specs[baseline]]
    for name, spec in specs.items():
        if name == decision["finetuned"]:
            words += ["--finetuned", spec]
        elif name == decision["reference"] and name != baseline:
            words += ["--optimized", spec]
        elif name == meta.get("together"):
            words += ["--together", spec]
        elif name != baseline:
            words += ["--model", f"{name}={spec}"]
    words += ["--dataset", str(meta["dataset"])]
    words += ["--temperature", f"{sampling['temperature']:g}", "--max-new-tokens", str(sampling["max_new_tokens"])]
    words += ["--seed", str(sampling["seed"])] if sampling["temperature"] else []
    words += ["--samples", str(sampling["repeats"])] if sampling.get("repeats", 1) != 1 else []
    words += ["--limit", str(meta["limit"])] if meta.get("limit") else []
    return [*words, "--output", str(meta["output"])]


def _spec(part: Mapping[str, Any]) -> str:
    """What is typed to get a model."""
    if part.get("adapter") is False and part.get("base_model"):
        spec = str(part["base_model"])
    else:
        spec = str(part.get("spec") or "")
    return f"constrained:{spec}" if spec and part.get("constrained") else spec
