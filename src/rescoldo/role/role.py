"""A role: its prompt, how answers are written as text and how they are scored; all read from its file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.phrase import Phrase
from rescoldo.role import keys
from rescoldo.role.conversation import Asked, Conversation, Turns, convert, mend, recognized
from rescoldo.role.fault import Fault, Finding, errors, findings_of, kind, mended_of, text_findings
from rescoldo.role.hooks import Hook, HookError, is_foreign, load_function
from rescoldo.role.metrics import NAMED, NEED_ANSWERS, PERPLEXITY, Answer, Note, Score, from_function
from rescoldo.role.prompt import PromptError, compile_template, fields_used, render
from rescoldo.role.record import Record
from rescoldo.role.schema import Form, Schema
from rescoldo.role.serialization import SERIALIZATIONS
from rescoldo.role.spec import RoleSpec
from rescoldo.role.thinking import MARKS, split_thinking, spoken
from rescoldo.role.tools import written_calls
from rescoldo.role.yaml_text import YamlRefusedError, strip_fence

__all__ = ["Role", "Score"]
RUBRIC = """\
The better answer is the one that serves this input better: it is about this input and not about another one; it is
right, with no figure, name or fact that the input does not support; it is specific and complete; it says nothing twice
and contradicts itself nowhere."""


FOREIGN = "foreign"  # the code of a finding: the record fits another role


@dataclass(frozen=True)
class Role:
    """A role, made from a file by `get_role`. Equal roles train and score alike.

    Attributes:
        spec: the file's content, with the schema inserted.
        digest: SHA-256, in hexadecimal, of what affects training and scoring: not description, samples and sampling.
        source: the file, for messages.
        option: the value of --role that gives this role.
        folder: the folder of its files; None for a role in a single file.
        trusted: whether Python functions from outside this package may be run.
    """

    spec: RoleSpec
    digest: str
    source: str
    option: str
    folder: Path | None = None
    trusted: bool = True

    @property
    def name(self) -> str:
        """The name in its file."""
        return self.spec.name

    @property
    def input(self) -> str:
        """The field of a record with the input."""
        return self.spec.input

    @property
    def identity(self) -> str:
        """Name and content in one line; it must not change between a run's start and its resumption."""
        return f"{self.name} {self.digest[:16]}"

    @property
    def sampling(self) -> Sampling:
        """The default sampling of answers."""
        return Sampling(**self.spec.sampling.model_dump())

    @property
    def rubric(self) -> str:
        """The criteria for a judge that compares two answers."""
        return self.spec.rubric or RUBRIC

    @property
    def perplexity(self) -> bool:
        """Whether the loss on the reference answers is measured in addition to the score."""
        return PERPLEXITY in self.spec.metric

    @property
    def needs_answers(self) -> bool:
        """Whether records without an answer cannot be scored."""
        if self.spec.needs_answers is not None:
            return self.spec.needs_answers
        without_schema = self.schema is None and "valid" in self.spec.metric
        return without_schema or any(name in NEED_ANSWERS or name not in NAMED for name in self.spec.metric)

    @cached_property
    def schema(self) -> Schema | None:
        """The answer's schema, compiled; None for text."""
        return Schema(self.spec.schema_) if isinstance(self.spec.schema_, dict) else None

    @cached_property
    def form(self) -> Form:
        """The keys of an answer's text, by what they hold."""
        return self.schema.form if self.schema else Form()

    def instruction(self) -> str:
        """The task without an input: the prompt up to the paragraph that first uses the record."""
        text = "\n\n".join(template for _, template in self.spec.templates())
        same_for_all = re.split(r"\{[{%#]", text, maxsplit=1)[0]
        return same_for_all.rpartition("\n\n")[0] or same_for_all.strip() or self.spec.description

    def messages(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The chat messages (role, content …) of the prompt for this record; of type Turns if there are tools.

        Raises:
            RescoldoError: the record lacks a field that the prompt uses.
        """
        record = self.read(record, answers=False)
        if self.spec.prompt is None:
            return Turns([dict(turn) for turn in record["turns"]], record["turns"].tools)

        def rendered() -> list[tuple[str, str]]:
            return [(who, render(template, record)) for who, template in self._templates]

        try:
            texts = record.once(self, "prompt", rendered) if isinstance(record, Record) else rendered()
        except PromptError as error:
            raise RescoldoError(str(error), where=f"{self.source}, prompt", fix="fix the record or the role") from None
        return [{"role": who, "content": text} for who, text in texts]

    def conversation(self, record: dict[str, Any]) -> Conversation:
        """The conversation to learn: its messages, and which answers are learned. It has a single answer unless the
        records are conversations.

        Raises:
            RescoldoError: the record lacks a field that the prompt uses.
        """
        if self.spec.conversational and self.spec.prompt is None:
            return self.read(record)["turns"].whole  # type: ignore[no-any-return]

        def rendered() -> Conversation:
            asked = self.messages(record)
            return Conversation((*asked, {"role": "assistant", "content": self.target(record)}), (len(asked),))

        return record.once(self, "conversation", rendered) if isinstance(record, Record) else rendered()

    def target(self, record: dict[str, Any]) -> str:
        """The text that the model should learn to answer with: the record's answer in the role's serialization."""

        def written() -> str:
            return SERIALIZATIONS[self.spec.serialization].dump(self.answer_of(record))

        return record.once(self, "target", written) if isinstance(record, Record) else written()

    def rewritten(self, text: str) -> str:
        """A model's document, completely, in the layout of the role's own answers (indentation, quotes, one line a
        value), so that measurements on the text do not depend on its layout. A text that is not a document, or cannot
        be written in this layout, is returned unchanged."""
        value, fault = self.parse(text)
        if fault or self.schema is None:
            return text
        try:
            return SERIALIZATIONS[self.spec.serialization].dump(value)
        except (ValueError, TypeError, RecursionError):  # NaN, an integer with too many digits to print
            return text

    def answer_of(self, record: dict[str, Any]) -> Any:
        """The record's answer as a value: the properties in the schema, in its order. None if there is no answer."""
        value = self.read(record, answers=False).get(self.spec.answer)
        return self.schema.project(self.schema.conform(value)) if self.schema and value is not None else value

    def prose(self, record: dict[str, Any]) -> list[tuple[bool, str]]:
        """(is in a list, text) for each text of the record's answer that is prose."""

        def found() -> list[tuple[bool, str]]:
            value = self.read(record, answers=False).get(self.spec.answer)
            if self.schema is None:
                return [(False, value)] if isinstance(value, str) else []
            return list(self.schema.prose(self.schema.conform(value)))

        return record.once(self, "prose", found) if isinstance(record, Record) else found()

    def prose_of(self, text: str) -> list[tuple[bool, str]] | None:
        """(is in a list, text) for each prose text in a model's answer; None if the answer cannot be parsed.

        Unlike `prose`, this includes texts under keys that are not in the schema, since a model may write any key.
        """
        value, fault = self.parse(text)
        return None if fault else list(_prose(value, self.form.formal))

    def key(self, record: dict[str, Any]) -> str:
        """The input, for display (for BA: the concept)."""
        value = self.read(record, answers=False).get(self.spec.input, "")
        return _as_text(value).strip()

    def question(self, record: dict[str, Any]) -> str:
        """The record's own part of the prompt: its input and the other fields that the prompt uses, or a conversation's
        turns.

        The texts that many records share, those of the prompt and of a system message, are left out.
        """
        record = self.read(record, answers=False)
        if self.spec.prompt is None:
            return "\n\n".join(turn["content"] for turn in record["turns"] if turn["role"] != "system")
        others = [name for name in self._other_fields if name in record]
        return "\n".join([self.key(record), *(f"{name}: {_as_text(record[name])}" for name in others)])

    def read(self, record: dict[str, Any], *, answers: bool = True) -> dict[str, Any]:
        """A copy of a record without faults, in the form that the role's other methods expect.

        A conversation in any known format gets `turns`, `prompt` and `answer`; in other records, lists and objects
        written as YAML texts are parsed.
        """
        if self.spec.conversational:
            return convert(record, answers, self._known_keys)[0]
        if not answers or self.schema is None or not isinstance(record.get(self.spec.answer), dict | list | str):
            return record
        return {**record, self.spec.answer: self.schema.conform(record[self.spec.answer])}

    def check(self, record: dict[str, Any], file: str, line: int, *, answers: bool = True) -> list[Fault]:
        """The faults of a single record; without `answers` only its input is checked.

        Raises:
            RescoldoError: the role's own check fails, or returns an invalid value.
        """
        return self.checked(record, file, line, answers=answers)[0]

    def checked(
        self, record: dict[str, Any], file: str, line: int, *, answers: bool = True
    ) -> tuple[list[Fault], Record | None]:
        """What is wrong with a record, as `check` says it, and the record as the role's other methods take it, read
        once; None where something is wrong with what it asks.

        Raises:
            RescoldoError: the role's own check fails, or returns what it may not.
        """
        whole, findings = self._input_findings(record, answers)
        usable = not errors(findings)
        if answers and not any(finding.code == FOREIGN for finding in findings):
            findings = findings + self._answer_findings(record, whole, f"{file}:{line}") + keys.unreviewed(record)
        whole.line = line
        return [Fault(file, line, *finding) for finding in findings], whole if usable else None

    def mend(self, record: dict[str, Any], where: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """A corrected copy of a record, whose place is `where`, and (field, what) of each change, as far as the role
        has rules for it.

        Raises:
            RescoldoError: the role's own mend fails, or returns an invalid value.
        """
        if not self.spec.mend:
            return mend(record) if self.spec.conversational else (record, [])
        try:
            return self._function(self.spec.mend).call(mended_of, record)
        except HookError as error:
            raise self._failed("mend", self.spec.mend, error, where) from None

    def score(self, prediction: Any, record: dict[str, Any] | None = None) -> Score:
        """Score a prediction: the model's text, or a mapping of its fields. It does not raise for any text.

        Args:
            record: has the reference answer, for metrics that use it.
        """
        components: dict[str, float] = {}
        notes: list[str] = []
        failures: dict[str, str] = {}
        answer: Answer | None = None
        for name in self.spec.metric:
            if name == PERPLEXITY:
                continue
            if name in NAMED:
                answer = answer or self._read_answer(prediction, record)
                more, why = NAMED[name](answer)
            else:
                more, why, failure = self._own(name, prediction, record)
                failures |= failure
            components |= more
            notes += why
        total = sum(components.values()) / len(components) if components else 0.0
        return Score(total, components, notes, failures)

    def reads(self, text: str) -> bool:
        """Whether a model's text is a document in the role's serialization; False if answers are free text."""
        return self.schema is not None and not self.parse(text)[1]

    def ready(self) -> Role:
        """Load the Python functions that the role uses, so that errors appear now and not after hours. Returns the
        role.

        Raises:
            RescoldoError: a function does not exist, or may not be run.
        """
        for reference in self.spec.references():
            self._function(reference)
        return self

    def _own(
        self, name: str, prediction: Any, record: dict[str, Any] | None
    ) -> tuple[dict[str, float], list[str], dict[str, str]]:
        """Components, notes and failures (see Score) of a metric that is a Python function."""
        label = name.rpartition(":")[2]
        try:
            outcome = self._function(name).call(lambda result: from_function(result, label), prediction, record)
        except HookError as error:
            return {label: 0.0}, [Phrase("{component}: {what}", component=label, what=str(error))], {label: str(error)}
        return *outcome, {}

    def _failed(self, field: str, reference: str, error: HookError, on: str = "") -> RescoldoError:
        where = f" on {on}" if on else ""
        return RescoldoError(
            f"{field}: {reference} failed{where}: {error.what}",
            where=error.where or self.source,
            fix="fix the function; docs/roles.md describes its arguments and result",
        )

    def _function(self, reference: str) -> Hook:
        if reference not in self._functions:
            if is_foreign(reference) and not self.trusted:
                raise RescoldoError(
                    f"the role names Python code ({reference}), which is not run unless you ask for it",
                    where=self.source,
                    fix=f"look at it; if you trust it: --role {self.option}",
                )
            self._functions[reference] = load_function(reference, self.folder, self.source)
        return self._functions[reference]

    @cached_property
    def _functions(self) -> dict[str, Hook]:
        return {}

    @cached_property
    def _templates(self) -> list[tuple[str, Any]]:
        return [(who, compile_template(template)) for who, template in self.spec.templates()]

    @cached_property
    def _other_fields(self) -> list[str]:
        """The fields other than the input that the prompt uses."""
        used = set[str]().union(*(fields_used(template) for _, template in self.spec.templates()))
        return sorted(used - {self.spec.input})

    @cached_property
    def _known_keys(self) -> frozenset[str]:
        """The additional keys of a conversation that this role uses, or knows as annotations."""
        return frozenset([*self._other_fields, *self.spec.annotations])

    def _foreign(self, record: dict[str, Any]) -> list[Finding]:
        """Why a record has neither this role's input nor its answer: the known format that it has; [] if it has
        none."""
        if self.spec.input in record or self.spec.answer in record:
            return []
        shape = recognized(record)
        if shape:
            what = f"has no `{self.spec.input}`, the input of the role {self.name}; it is {shape}: --role generic"
            return [Finding("", FOREIGN, what)]
        return []

    def _input_findings(self, record: dict[str, Any], answers: bool) -> tuple[Record, list[Finding]]:
        """The record as it is read, as far as it can be, and what is wrong with what it asks."""
        if self.spec.conversational:
            found, findings = convert(record, answers, self._known_keys)
            whole = Record(found)
        else:
            whole = Record(self.read(record, answers=answers))
            findings = self._foreign(record) or text_findings(record, self.spec.input)
        if findings or self.spec.prompt is None:
            return whole, findings
        try:
            self.messages(whole)
        except RescoldoError as error:
            findings.append(Finding("", "prompt", error.what))
        return whole, findings

    def _answer_findings(self, record: dict[str, Any], whole: Record, where: str) -> list[Finding]:
        """The faults found by the role's own check if it has one, else by its schema.

        Args:
            record: as it is in the file.
            whole: the same as `read` returns it.
            where: file:line of the record.
        """
        if self.spec.check:
            try:
                return self._function(self.spec.check).call(findings_of, record)
            except HookError as error:
                raise self._failed("check", self.spec.check, error, where) from None
        name = self.spec.answer
        if self.spec.conversational and not isinstance(whole.get("turns"), Asked):
            return []  # the conversion has reported it already
        if self.schema is None:
            return text_findings(whole, name)
        if name not in whole:
            return [Finding(name, "missing", "is missing")]
        value = self.schema.conform(whole[name]) if self.spec.conversational else whole[name]
        if value is None:
            return [Finding(name, "type", f"is {kind(value)}: expected an answer")]
        return self.schema.findings(value, name)

    def _read_answer(self, prediction: Any, record: dict[str, Any] | None) -> Answer:
        wanted_text = wanted = None
        if record is not None:
            wanted = self.answer_of(record)
            wanted_text = self.target(record) if wanted is not None else None
        if not isinstance(prediction, str):
            if hasattr(prediction, "toDict"):  # a DSPy prediction
                prediction = prediction.toDict()
            if not isinstance(prediction, Mapping):
                why = Phrase("it is a {kind}", kind=type(prediction).__name__)
                return Answer("", None, why, wanted_text, wanted, self.schema)
            value = {str(name): item for name, item in prediction.items()}
            value = self.schema.conform(value) if self.schema else value
            try:
                text = json.dumps(value, ensure_ascii=False, default=str)
            except (TypeError, ValueError, RecursionError):  # an integer with too many digits, keys that are not texts
                text = ""
            return Answer(text, value, "", wanted_text, wanted, self.schema)
        prediction = self.said(prediction, record)
        value, fault = self.parse(prediction)
        return Answer(prediction, value, fault, wanted_text, wanted, self.schema)

    def said(self, text: str, record: dict[str, Any] | None = None) -> str:
        """A model's text in the form of a conversation's answer: without thinking, with tool calls as in call_text."""
        if not self.spec.conversational:
            return text
        said = split_thinking(text)[1]
        if said == text and not any(start in text for start, _ in MARKS) and any(end in text for _, end in MARKS):
            said = spoken(text)  # the prompt may have opened the thinking part
        turns = self.read(record, answers=False).get("turns") if record is not None else None
        return written_calls(said) if isinstance(turns, Asked) and turns.whole.may_call else said

    def parse(self, text: str) -> tuple[Any, str]:
        """(value, "") of a model's text, or (None, why it cannot be parsed)."""
        row = SERIALIZATIONS[self.spec.serialization]
        if self.schema is None or row.load is None:
            return text.strip(), ""
        try:
            value = row.load(strip_fence(text))
        except RecursionError:
            return None, Phrase("nested too deeply")
        except YamlRefusedError as refusal:
            why = Phrase("not {title}: {why}", title=row.title, why=refusal.what)
            return None, Note.at(why, *([refusal.line] if refusal.line else []))
        if isinstance(value, str):
            return None, Phrase("it is plain text")
        if not isinstance(value, dict | list):
            return None, Phrase("it is {kind}", kind=kind(value))
        return self.schema.conform(value), ""


def _prose(value: Any, formal: frozenset[str], listed: bool = False) -> Iterator[tuple[bool, str]]:
    """(is in a list, text) for each text in a parsed answer that is not under a formal key."""
    if isinstance(value, str):
        yield listed, value
    elif isinstance(value, list):
        for item in value:
            yield from _prose(item, formal, True)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in formal:
                yield from _prose(item, formal, listed)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
