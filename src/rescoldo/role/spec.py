"""The schema of role.yaml: its fields and their allowed values."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from rescoldo.role.fault import kind
from rescoldo.role.hooks import is_reference
from rescoldo.role.metrics import NAMED, PERPLEXITY
from rescoldo.role.serialization import SERIALIZATIONS

NAME = re.compile(r"[a-z][a-z0-9_-]{0,49}")
NAME_IN_WORDS = "expected lower-case letters, digits, - and _, starting with a letter, at most 50"
_FIELD_NAME = re.compile(r"[^_\W]\w{0,99}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SamplingSpec(_Strict):
    """The default sampling of answers."""

    temperature: float = Field(default=0.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=2048, ge=1, le=1_000_000)


class MessageTemplate(_Strict):
    """One message of a prompt; its content is a template."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


# Fields with several forms are distinguished by `kind`, so that an error is about the form that was meant.
_Text = Annotated[str, Tag("text")]
_Prompt = Annotated[_Text | Annotated[list[MessageTemplate], Tag("a list")], Discriminator(kind)]
_Schema = Annotated[_Text | Annotated[dict[str, Any], Tag("an object")], Discriminator(kind)]
_Samples = Annotated[_Text | Annotated[list[dict[str, Any]], Tag("a list")], Discriminator(kind)]


class RoleSpec(_Strict):
    """A role. `schema` and `samples` are inline, or the name of a file in the role's folder."""

    name: str
    description: str = ""
    format: Literal["record", "conversation"] = "record"
    input: str = "prompt"
    answer: str = "answer"
    prompt: _Prompt | None = None
    schema_: _Schema | None = Field(None, alias="schema")
    serialization: Literal["yaml", "json", "text"] = "text"
    metric: list[str] = Field(min_length=1, max_length=10)
    needs_answers: bool | None = None
    check: str | None = None
    mend: str | None = None
    same: Literal["prompt", "words"] = "prompt"
    annotations: list[str] = Field(default_factory=list, max_length=100)
    heading: str = "Fine-Tuning LoRA"
    sampling: SamplingSpec = Field(default_factory=SamplingSpec)
    samples: _Samples | None = None
    rubric: str | None = Field(None, min_length=1, max_length=10_000)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(f"{value[:60]!r} is not a valid name for a role: {NAME_IN_WORDS}")
        return value

    @field_validator("input", "answer")
    @classmethod
    def _field_name(cls, value: str) -> str:
        if not _FIELD_NAME.fullmatch(value):
            raise ValueError(f"{value[:60]!r} is not a valid field name: expected letters, digits and _, no _ first")
        return value

    @field_validator("metric", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("metric")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in NAMED and name != PERPLEXITY and not is_reference(name):
                known = ", ".join([*NAMED, PERPLEXITY])
                raise ValueError(f"there is no metric {name[:60]!r}: {known}, module:function or file.py:function")
        if set(value) == {PERPLEXITY}:
            raise ValueError("perplexity is not a score: name another metric in addition")
        return value

    @field_validator("check", "mend")
    @classmethod
    def _reference(cls, value: str | None) -> str | None:
        if value is not None and not is_reference(value):
            raise ValueError(f"{value[:60]!r} is not module:function or file.py:function")
        return value

    @model_validator(mode="after")
    def _together(self) -> RoleSpec:
        if not self.conversational and self.prompt is None:
            raise ValueError("prompt is missing: only records that are conversations do not need it")
        if self.conversational and (self.input, self.answer) != ("prompt", "answer"):
            raise ValueError("a conversation's input is `prompt` and its answer `answer`: leave both fields out")
        if isinstance(self.prompt, list) and (not self.prompt or self.prompt[-1].role != "user"):
            raise ValueError("the last message of the prompt must be the user's")
        structured = [name for name, row in SERIALIZATIONS.items() if row.load is not None]
        if self.serialization not in structured and self.schema_ is not None:
            raise ValueError(f"serialization: text has no schema: expected {' or '.join(structured)}")
        if self.serialization in structured and self.schema_ is None:
            raise ValueError(f"schema is missing: expected one for serialization {self.serialization}")
        if self.input == self.answer:
            raise ValueError("input and answer are the same field")
        return self

    @property
    def conversational(self) -> bool:
        """Whether records are whole conversations; otherwise they have an input and an answer field."""
        return self.format == "conversation"

    def templates(self) -> list[tuple[str, str]]:
        """(role, template) of the prompt's messages; [] if the records are conversations."""
        if isinstance(self.prompt, str):
            return [("user", self.prompt)]
        return [(message.role, message.content) for message in self.prompt or []]

    def references(self) -> list[str]:
        """The Python functions that the role refers to."""
        named = [self.check, self.mend, *(name for name in self.metric if is_reference(name))]
        return [name for name in named if name]
