"""A model writes answers, and for documents the inputs too; each draft records its source and what is doubtful about
it.

Each response is written to disk as it arrives (models.cache), so that the same command resumes an interrupted run.
Drafts are not trained on: `status: draft` makes `train` refuse them until a person has accepted them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rescoldo.constrain import json_schema
from rescoldo.data.audit import by_words, key_of
from rescoldo.data.similar import near_pairs
from rescoldo.draft.sources import Asked
from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.evaluation.content import unlike_references
from rescoldo.evaluation.wording import REASONS
from rescoldo.models.cache import PredictionCache, key
from rescoldo.models.predictor import ChatModel, Messages, Prediction
from rescoldo.role import Role
from rescoldo.role.fault import errors

MOST_INPUTS = 20  # from one piece of a document
INPUT_TOKENS = 1024
_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(.+)$", re.MULTILINE)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_FIND = """\
Read the extract at the end. Write {number} different inputs that a user could give to an assistant with this task:

{task}
{samples}
Each input must be about what the extract says, stand on its own (the assistant does not see the extract unless you \
repeat what matters), and be in the language of the extract.
Answer with a JSON object and nothing else: {{"inputs": ["…", "…"]}}

Extract:
{extract}"""
_RELY = """

Rely on this extract for facts; state no fact, name or figure that it does not support:

{extract}"""


@dataclass
class Drafted:
    """The result of drafting: the drafts as records, and how many inputs were left out and why."""

    records: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0
    failed: list[str] = field(default_factory=list)
    calibrated: bool = False


class Asker:
    """Sends conversations to a chat model, or takes the responses from the cache.

    Args:
        progress: called with a label, the number of answers so far and their total.
    """

    def __init__(self, chat: ChatModel, cache: PredictionCache, progress: Callable[[str, int, int], None]) -> None:
        self.chat, self._cache, self._progress = chat, cache, progress

    def ask(
        self, what: str, conversations: Sequence[Messages], sampling: Sampling, chat: ChatModel
    ) -> list[Prediction]:
        """The model's answers, in the order of the conversations."""
        print_ = chat.fingerprint()
        names = [key(print_, chat.render(messages), sampling) for messages in conversations]
        found = {i: kept for i, name in enumerate(names) if (kept := self._cache.get(name)) is not None}
        open_ = [i for i in range(len(names)) if i not in found]
        self._progress(what, len(found), len(names))
        for place, prediction in chat.complete([conversations[i] for i in open_], sampling) if open_ else ():
            index = open_[place]
            found[index] = prediction
            if not prediction.error:
                self._cache.put(names[index], prediction)
            self._progress(what, len(found), len(names))
        return [found[i] for i in range(len(names))]


def draft(
    asked: Sequence[Asked],
    role: Role,
    asker: Asker,
    answerer: ChatModel,
    sampling: Sampling,
    *,
    spec: str,
    existing: Sequence[dict[str, Any]] = (),
    per_piece: int = 3,
) -> Drafted:
    """Write drafts for all inputs and documents.

    Args:
        answerer: the model that answers: `asker`'s own model, possibly constrained to the role's schema.
        spec: the model as the user named it.
        existing: existing records: their inputs are not drafted again, and new answers are compared with theirs.
        per_piece: the number of inputs for each piece of a document.

    Raises:
        RescoldoError: an input lacks fields of the role's prompt, or the model gave no answers.
    """
    result = Drafted()
    inputs = list(_inputs(asked, role, asker, sampling, per_piece, result))
    fresh = _without_repeats(inputs, role, existing, result)
    conversations = [_conversation(role, one) for one in fresh]
    answers = asker.ask("Answering", conversations, sampling, answerer)
    texts: list[tuple[int, dict[str, Any], str]] = []
    for one, messages, prediction in zip(fresh, conversations, answers, strict=True):
        if prediction.error or not prediction.text.strip():
            result.failed.append(f"{one.source}, {one.place}: {prediction.error or 'the answer is empty'}")
            continue
        assert one.record is not None
        record, checks = _answered(role, one.record, prediction)
        texts.append((len(result.records), record, prediction.text))
        origin = {
            "model": spec,
            "model_fingerprint": answerer.fingerprint(),
            "prompt_sha256": hashlib.sha256(answerer.render(messages).encode()).hexdigest(),
            "source": one.source,
            "place": one.place,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"extract": one.extract} if one.extract else {}),
            "checks": checks,
        }
        result.records.append({**record, "status": "draft", "provenance": origin})
    sound = [(i, record, text) for i, record, text in texts if not result.records[i]["provenance"]["checks"]]
    doubts = unlike_references(role, existing, sound)
    result.calibrated = doubts is not None
    for (index, _, _), found in zip(sound, doubts or (), strict=False):
        reasons = [REASONS[name, side] for name, side in found.items()]
        result.records[index]["provenance"]["doubts"] = [f"unlike the existing answers: {one}" for one in reasons]
    if not result.records and result.failed:
        raise RescoldoError(
            f"the model gave no answer ({result.failed[0]})", where=spec, fix="fix that and give the same command",
            exit_code=EXIT_FAILURE,
        )  # fmt: skip
    return result


def _inputs(
    asked: Sequence[Asked], role: Role, asker: Asker, sampling: Sampling, number: int, result: Drafted
) -> Iterator[Asked]:
    """The inputs of the lists, and those that the model proposes for pieces of documents."""
    pieces = [one for one in asked if one.record is None]
    yield from (one for one in asked if one.record is not None)
    if not pieces:
        return
    finder = asker.chat.constrained(json_schema(_inputs_schema(number), strict=False))
    conversations: list[Messages] = [[{"role": "user", "content": _find(role, one.extract, number)}] for one in pieces]
    limit = replace(sampling, max_new_tokens=INPUT_TOKENS)  # the role's own limit is meant for answers, e.g. labels
    answers = asker.ask("Finding inputs", conversations, limit, finder)
    failed = [place for place, prediction in enumerate(answers) if prediction.error]
    if failed:  # not every server supports a schema
        again = asker.ask("Finding inputs freely", [conversations[i] for i in failed], limit, asker.chat)
        for place, prediction in zip(failed, again, strict=True):
            answers[place] = prediction
    for piece, prediction in zip(pieces, answers, strict=True):
        found = list(_listed(prediction.text))[:number] if not prediction.error else []
        if not found:
            result.failed.append(f"{piece.source}, {piece.place}: {prediction.error or 'no inputs were found'}")
        yield from (replace(piece, record={role.input: text}) for text in found)


def _inputs_schema(number: int) -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string", "minLength": 3, "maxLength": 1500}, "maxItems": number}
    return {"type": "object", "properties": {"inputs": {**texts, "minItems": 1}}, "required": ["inputs"]}


def _find(role: Role, extract: str, number: int) -> str:
    samples = role.spec.samples if isinstance(role.spec.samples, list) else []
    shown = [str(one[role.input])[:300] for one in samples[:2] if isinstance(one.get(role.input), str)]
    examples = "".join(f"\nAn input looks like this: {text}" for text in shown)
    task = (role.instruction() or role.spec.description)[:4000]
    return _FIND.format(number=number, task=task, samples=examples, extract=extract)


def _listed(text: str) -> Iterator[str]:
    """The inputs in an answer: the texts of a JSON list, even a truncated one, or the items of a plain list."""
    begin = text.find("[")
    items = _LISTED.findall(text)
    if begin >= 0 and '"' in text[begin:]:
        items = []
        for quoted in _QUOTED.findall(text, begin):
            try:
                items.append(json.loads(quoted, strict=False))
            except ValueError:
                continue
    yield from (item.strip() for item in items if sum(map(str.isalnum, item)) > 2)  # skips "…" copied from the prompt


def _without_repeats(
    inputs: Sequence[Asked], role: Role, existing: Sequence[dict[str, Any]], result: Drafted
) -> list[Asked]:
    """The inputs that are not duplicates or near-duplicates, in the role's terms, of each other or of existing ones."""
    sound = []
    for one in inputs:
        record = one.record or {}
        faults = errors(role.check(record, one.source, 0, answers=False))
        if faults:
            where = f"{one.source}, {one.place}, {faults[0].field}"
            raise RescoldoError(faults[0].what, where=where, fix="fix that input; its other fields must be there, too")
        sound.append(one)
    known = [role.read(one, answers=False) for one in existing]
    records = [*known, *(one.record or {} for one in sound)]
    keys = [key_of(role, one) for one in records]
    near = {later for later, _, _ in near_pairs([role.question(one) for one in records], signs=not by_words(role))}
    seen = set(keys[: len(known)])
    fresh = []
    for place, one in enumerate(sound, start=len(known)):
        if keys[place] in seen or place in near:
            result.repeated += 1
        else:
            fresh.append(one)
        seen.add(keys[place])
    return fresh


def _conversation(role: Role, one: Asked) -> Messages:
    """The prompt for the model: the role's own prompt, with the extract that the answer has to rely on."""
    messages = [dict(message) for message in role.messages(one.record or {})]
    if one.extract:
        messages[-1]["content"] += _RELY.format(extract=one.extract)
    return messages


def _answered(role: Role, record: dict[str, Any], prediction: Prediction) -> tuple[dict[str, Any], list[str]]:
    """The record with the model's answer, and what is wrong with the answer."""
    text = prediction.text.strip()
    value, fault = role.parse(text)
    checks = [] if prediction.ended else [f"was cut off after {prediction.tokens} tokens"]
    made = with_answer(role, record, text if fault else value)
    if fault:
        return made, [*checks, str(fault)]
    faults = errors(role.check(made, "", 0))
    return made, [*checks, *(f"{one.field}: {one.what}" if one.field else one.what for one in faults)]


def with_answer(role: Role, record: dict[str, Any], answer: Any) -> dict[str, Any]:
    """A copy of a record with the answer in the field that its format uses."""
    if role.spec.conversational:
        if isinstance(record.get("messages"), list):
            said = [one for one in record["messages"] if one is not record["messages"][-1] or one.get("role") == "user"]
            return {**record, "messages": [*said, {"role": "assistant", "content": answer}]}
        return {**record, "completion": answer}
    return {**record, role.spec.answer: answer}
