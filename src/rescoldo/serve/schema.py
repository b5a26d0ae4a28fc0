"""The request schema: OpenAI's chat completions, as far as the engine supports them. Anything else is refused by
name."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

if TYPE_CHECKING:
    from rescoldo.constrain import Grammar

_MAX_MESSAGES, _MAX_STOPS = 1000, 16
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # values that change nothing, so they are accepted; the default comes first
    "tools": ([],),
    "functions": ([],),
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "repeat_penalty": (1, 1.0),
    "top_k": (0, -1),
    "min_p": (0, 0.0),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "modalities": (["text"],),
}
_ANNOTATIONS = ("cache_control", "id")  # annotations of clients on a message or a part, not part of its text
_IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
)  # fmt: skip


# The fields that request a form of answer: OpenAI's, vLLM's, and vLLM's former ones.
FORMS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice")


class RequestError(Exception):
    """A request that is answered with an error in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}

    def document(self) -> dict[str, Any]:
        """The body of the error response."""
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error", 500: "server_error"}
        kind = kinds.get(self.status, "timeout_error" if self.status in (408, 504) else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _without_notes(value: Any, fields: Collection[str]) -> Any:
    """An object without fields that are null, known annotations, and fields outside `fields` that are empty or false
    (clients send an answer back as they received it, with refusal, reasoning_content and the like)."""
    if not isinstance(value, dict):
        return value
    return {
        name: content
        for name, content in value.items()
        if content is not None
        and name not in _ANNOTATIONS
        and (name in fields or not (content is False or content in ("", [], {})))
    }


class Part(_Strict):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return _without_notes(value, cls.model_fields)


class Message(_Strict):
    """One turn of the conversation. Empty fields count as missing."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return _without_notes(value, cls.model_fields)

    @field_validator("content")
    @classmethod
    def _whole(cls, value: str | list[Part]) -> str | list[Part]:
        text = value if isinstance(value, str) else "".join(part.text for part in value)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError("contains a lone surrogate, which is not a character") from None
        return value

    def turn(self) -> dict[str, str]:
        """The message for chat templates."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class JsonSchema(_Strict):
    """response_format.json_schema. `strict` refuses schemas that the grammar cannot enforce."""

    name: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """The required form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _together(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema and the type json_schema must be given together")
        return self

    def grammar(self) -> Grammar | None:
        """The grammar that constrains the answer; None for free text.

        Raises:
            RequestError: the schema cannot be used.
        """
        from rescoldo.constrain import GrammarError, json_object, json_schema
        from rescoldo.role.schema import unknown_keywords

        if self.json_schema is None:
            return json_object() if self.type == "json_object" else None
        try:
            odd = unknown_keywords(self.json_schema.schema_) if self.json_schema.strict else []
            if odd:
                meant = f", did you mean {odd[0][1]}?" if odd[0][1] else ""
                raise GrammarError(f"{odd[0][0][:60]!r} is not a keyword of JSON Schema{meant}")
            return json_schema(self.json_schema.schema_, strict=bool(self.json_schema.strict))
        except (GrammarError, RecursionError) as error:
            what = f"this schema cannot be used: {error}"[:500]
            raise RequestError(400, what, code="invalid_schema", param="response_format.json_schema.schema") from None


class StructuredOutputs(_Strict):
    """vLLM's extension: exactly one form. Its other forms (grammar, structural_tag, …) are not supported."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [self.json_ is not None, self.regex is not None, self.choice is not None, bool(self.json_object)]
        if sum(given) != 1:
            raise ValueError("expected exactly one of json, regex, choice, json_object: true")
        return self

    def grammar(self, param: str) -> Grammar:
        """The grammar that constrains the answer; `param`: the request's field, for messages.

        Raises:
            RequestError: the form cannot be used.
        """
        from rescoldo.constrain import GrammarError, choices, json_object, json_schema, regex

        try:
            if self.regex is not None:
                return regex(self.regex)
            if self.choice is not None:
                return choices(self.choice)
            if self.json_ is None:
                return json_object()
            schema = json.loads(self.json_) if isinstance(self.json_, str) else self.json_
            if not isinstance(schema, dict):
                raise GrammarError("it is not an object")
            return json_schema(schema, strict=True)
        except (GrammarError, ValueError, RecursionError) as error:
            what = f"this form cannot be used: {error}"[:500]
            raise RequestError(400, what, code="invalid_schema", param=param) from None


class StreamOptions(_Strict):
    """What a stream contains besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """POST /v1/chat/completions. A field that is null counts as missing."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ChatRequest:
        free = self.response_format is None or self.response_format.type == "text"
        given = [name for name in FORMS if getattr(self, name) is not None and not (name == FORMS[0] and free)]
        if len(given) > 1:
            raise ValueError(f"only one form of answer is allowed: got {' and '.join(given)}")
        return self

    def grammar(self) -> Grammar | None:
        """The grammar that constrains the answer; None for free text.

        Raises:
            RequestError: the form cannot be used.
        """
        if self.structured_outputs is not None:
            return self.structured_outputs.grammar("structured_outputs")
        for name in FORMS[2:]:
            value = getattr(self, name)
            if value is not None:
                return StructuredOutputs.model_validate({name.removeprefix("guided_"): value}).grammar(name)
        return self.response_format.grammar() if self.response_format else None

    @property
    def has_form(self) -> bool:
        """Whether the request requires a form of answer."""
        return any(getattr(self, name) is not None for name in FORMS)

    @property
    def form(self) -> str:
        """The field that requires it."""
        return next((name for name in FORMS[1:] if getattr(self, name) is not None), FORMS[0])

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > _MAX_STOPS or not all(0 < len(stop) <= 1000 for stop in stops):
            raise ValueError(f"at most {_MAX_STOPS} texts of 1 to 1000 characters")
        return value

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def limit(self) -> int | None:
        """The maximum number of tokens of the answer, if the request sets one."""
        return self.max_completion_tokens or self.max_tokens


def parse_request(body: bytes) -> ChatRequest:
    """Parse the body of a request.

    Raises:
        RequestError: it is not JSON, lacks a field, has a value out of range, or uses an unsupported feature.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(400, "the body is JSON, but not an object", code="invalid_json")
    fields = {}
    for name, neutral in _NEUTRAL.items():
        content = value.get(name)
        if content is not None and not any(type(content) is type(one) and content == one for one in neutral):
            raise RequestError(400, f"{name} is not supported", code="unsupported_parameter", param=name)
    for name, content in value.items():
        if content is not None and name not in _IGNORED and name not in _NEUTRAL:
            fields[name] = content
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        param, said, code = _fault(error)
        what = f"{param}: {said}" if param else said
        raise RequestError(400, what[:500], code=code, param=param or None) from None


_EXPECTED = {  # pydantic's error types, and its labels of a union's branches
    "string_type": "a string", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "list_type": "a list", "model_type": "an object", "dict_type": "an object",
}  # fmt: skip
_JSON_TYPES = ((bool, "a boolean"), (str, "a string"), (int | float, "a number"), (list, "a list"), (dict, "an object"))


def _fault(error: ValidationError) -> tuple[str, str, str]:
    """(field, what is wrong with it, code) of the first fault. For a union, the branch that got furthest is used; if
    none accepted the value's type, all accepted types are named."""
    faults = error.errors(include_url=False)
    path = _field(faults[0]["loc"])
    same = [one for one in faults if _field(one["loc"])[: len(path)] == path]
    first = max(same, key=lambda one: len(_field(one["loc"])))
    param = ".".join(str(part) for part in _field(first["loc"]))[:200]
    kind = first["type"]
    if kind == "extra_forbidden":
        return param, "is not supported", "unsupported_parameter"
    if kind == "missing":
        return param, "is missing", "invalid_value"
    if kind in _EXPECTED:
        wanted = dict.fromkeys(
            "a list of text parts" if one["loc"][-1] == "list[Part]" else _EXPECTED.get(one["type"], one["msg"])
            for one in same
            if _field(one["loc"]) == _field(first["loc"])
        )
        found = next((words for kind, words in _JSON_TYPES if isinstance(first["input"], kind)), "null")
        return param, f"expected {' or '.join(wanted)}, got {found}", "invalid_value"
    if kind == "literal_error":
        return param, f"expected {first['ctx']['expected']}", "invalid_value"
    return param, first["msg"].removeprefix("Value error, "), "invalid_value"


def _field(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The path in the request, without pydantic's labels of a union's branches (str, list[Part], …)."""
    return tuple(part for part in location if isinstance(part, int) or (part != "str" and "[" not in part))
