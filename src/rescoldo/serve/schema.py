"""What a request may say: OpenAI's chat completions, as far as the engine can do it. The rest is refused by name."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

_MAX_MESSAGES, _MAX_STOPS = 1000, 16
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # asked for with one of these, nothing is asked for
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_EMPTY_IN_MESSAGES = ("tool_calls", "annotations")  # an answer's fields that say nothing when they are empty
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class RequestError(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error", 500: "server_error"}
        kind = kinds.get(self.status, "timeout_error" if self.status in (408, 504) else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Part(_Strict):
    """A piece of a message's content; only text."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of the conversation. A field that is null counts as not given: clients send an answer back as it came,
    with refusal and the like."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None and not (v == [] and k in _EMPTY_IN_MESSAGES)}

    @field_validator("content")
    @classmethod
    def _whole(cls, value: str | list[Part]) -> str | list[Part]:
        text = value if isinstance(value, str) else "".join(part.text for part in value)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError("holds half of a character (a lone surrogate)") from None
        return value

    def turn(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(_Strict):
    """What a stream says besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """POST /v1/chat/completions. A field that is null counts as not given."""

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
        """The most tokens that the answer may have, if the request says so."""
        return self.max_completion_tokens or self.max_tokens


def parse_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        RequestError: it is no JSON, lacks something, has a value out of range, or asks for what is not there.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(400, "the body is JSON, but not an object", code="invalid_json")
    fields = {}
    for name, content in value.items():
        if content is None or name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            fields[name] = content
        elif not any(type(content) is type(neutral) and content == neutral for neutral in _NEUTRAL[name]):
            raise RequestError(400, f"{name} is not supported", code="unsupported_parameter", param=name)
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])[:200]
        code = "unsupported_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
        said = "is not supported" if first["type"] == "extra_forbidden" else first["msg"]
        raise RequestError(400, f"{param}: {said}"[:500], code=code, param=param) from None
