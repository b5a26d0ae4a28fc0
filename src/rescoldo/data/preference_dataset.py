"""Preference data tokenized for the engine: both answers to a prompt, or one answer with its label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rescoldo.data.dataset import Dataset, Overrun, digest, inputs_of, short
from rescoldo.data.preferences import FORMS, Judgement, read_preferences
from rescoldo.data.template_check import check_template
from rescoldo.data.tokenize import refuse_control_tokens, tokenize_records
from rescoldo.engine.types import Example, Judged, Pair
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.role import Role, get_role
from rescoldo.role.conversation import Asked, Conversation
from rescoldo.role.record import Record


def preference_dataset(
    path: Path,
    role: Role,
    tokenizer: Any,
    max_length: int,
    limit: int | None,
    form: str,
    judgements: Sequence[Judgement] | None = None,
) -> Dataset:
    """Tokenize a file of preferences, like data.dataset.read_dataset.

    A line is left out if one of its answers is longer than max_length.

    Raises:
        RescoldoError: faults in the file, or no lines left.
    """
    generic = get_role("generic")
    judgements = (read_preferences(path, role, form) if judgements is None else judgements)[:limit]
    flat = [record for judgement in judgements for record in judgement.answers]
    refuse_control_tokens(path, flat, generic, tokenizer)
    notes = tuple(check_template(path, flat, generic, tokenizer))

    def tokenized(records: Sequence[Record]) -> list[Example | None]:
        one = tokenize_records(records, generic, tokenizer, max_length)
        found: list[Example | None] = [None] * len(records)
        for place, example in zip(one.kept, one.examples, strict=True):
            found[place] = example
        return found

    sequences = iter(tokenized(flat))
    answers = [tuple(next(sequences) for _ in judgement.answers) for judgement in judgements]
    single = FORMS[form].single
    others = _mismatched(judgements, tokenized) if single else [None] * len(judgements)
    examples: list[Example] = []
    names: list[str] = []
    overruns: list[Overrun] = []
    for judgement, own, other in zip(judgements, answers, others, strict=True):
        line = judgement.answers[0].line
        first, *rest = own
        if first is None or any(one is None for one in rest) or (single and other is None):
            overruns.append(Overrun(line))
            continue
        names.append(f"{path.name}:{line} ({short(generic.key(judgement.answers[0]))})")
        if not single:
            assert rest[0] is not None
            examples.append(Pair(first.tokens, first.n_prompt, first.weights, rejected=rest[0]))
        else:
            assert other is not None
            examples.append(Judged(first.tokens, first.n_prompt, first.weights, good=judgement.good, mismatched=other))
    if not examples:
        raise RescoldoError(
            f"no line fits into {max_length} tokens", where=str(path), fix="a larger --max-length, or shorter answers"
        )
    firsts = [judgement.answers[0] for judgement in judgements]
    return Dataset(
        path, examples, names, overruns, digest(examples), sha256(path), notes, inputs=inputs_of(firsts, generic)
    )


def _mismatched(judgements: Sequence[Judgement], tokenized: Any) -> list[Example | None]:
    """For each line: its prompt with the previous line's answer, which belongs to another prompt, as TRL pairs them
    (the first line gets the last line's answer)."""
    n = len(judgements)
    records: list[Record] = []
    for place, judgement in enumerate(judgements):
        own = judgement.answers[0]
        before = (judgements[(place - step) % n].answers[0] for step in range(1, n))
        other = next((one for one in before if one["turns"] != own["turns"]), judgements[place - 1].answers[0])
        turns = own["turns"]
        answered = (*turns, other["turns"].whole.messages[-1])
        whole = Conversation(answered, (len(turns),), turns.whole.tools)
        record = Record({**own, "turns": Asked(whole, turns), "answer": other["answer"]})
        record.line = own.line
        records.append(record)
    found: list[Example | None] = tokenized(records)
    return found
