"""A model behind an OpenAI-compatible server: llama.cpp, vLLM, Ollama's /v1 and the like."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rescoldo.data.chat_template import tools_of
from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.extras import missing
from rescoldo.models.address import (
    KEY_VARIABLE,
    PROBE_SECONDS,
    get_json,
    is_loopback,
    ollama_entry,
    ollama_host,
    parse_url,
    server_entry,
)
from rescoldo.models.predictor import Messages, Prediction
from rescoldo.role.tools import call_text, read_calls

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from rescoldo.constrain import Grammar

_IDENTITY = ("id", "owned_by", "root", "meta", "digest")  # the constant fields of a server's entry for a model


@dataclass(frozen=True)
class ServerOptions:
    """Settings for a server: concurrent requests, seconds for one answer including retries, number of retries."""

    concurrency: int = 4
    timeout: float = 1800.0
    retries: int = 3


def open_server(spec: str, options: ServerOptions | None = None) -> ServerChat:
    """The model `openai:MODEL@URL` or `ollama:NAME`, after its server has confirmed it.

    Ollama's address is $OLLAMA_HOST, else 127.0.0.1:11434.

    Raises:
        RescoldoError: a malformed spec, nothing listens there, the key is refused, or the model is missing.
    """
    if importlib.util.find_spec("openai") is None:
        raise missing("servers", "asking a server needs the package openai", where=spec)
    prefix, colon, rest = spec.partition(":")
    return _OPENERS[prefix + colon](spec, rest, options or ServerOptions())


def _open_ollama(spec: str, name: str, options: ServerOptions) -> ServerChat:
    host = ollama_host()
    return ServerChat(spec, name, host + "/v1", options, ollama_entry(name, host))


def _open_openai(spec: str, rest: str, options: ServerOptions) -> ServerChat:
    model, at, url = _split(rest)
    parts = parse_url(url)
    if not model or not at or parts is None:
        raise RescoldoError(
            "names no model and server",
            where=spec[:200],
            fix="write openai:MODEL@URL, as openai:m@http://127.0.0.1:8080/v1",
        )
    if parts.username or parts.password or parts.query:
        raise RescoldoError(
            "a key must not be in the address, because it would appear in the result",
            where=f"openai:{model}@…",
            fix=f"put it into the environment: {KEY_VARIABLE}",
        )
    url = url.rstrip("/")
    return ServerChat(spec, model, url, options, server_entry(model, url))


# a row for each prefix in names.SERVERS
_OPENERS: dict[str, Callable[[str, str, ServerOptions], ServerChat]] = {
    "openai:": _open_openai,
    "ollama:": _open_ollama,
}


def _split(rest: str) -> tuple[str, bool, str]:
    """Split MODEL@URL; a model's name may itself contain an @."""
    for scheme in ("@http://", "@https://"):
        place = rest.rfind(scheme)
        if place >= 0:
            return rest[:place], True, rest[place + 1 :]
    return rest, False, ""


class ServerChat:
    """A model behind a server. See ChatModel."""

    batches = False

    def __init__(
        self,
        spec: str,
        model: str,
        url: str,
        options: ServerOptions,
        entry: dict[str, Any],
        grammar: Grammar | None = None,
    ) -> None:
        self.spec, self.model, self.url, self.options, self.entry = spec, model, url, options, entry
        self.grammar = grammar

    def constrained(self, grammar: Grammar) -> ServerChat:
        """The same model, constrained to a JSON schema, the form that servers support. For a role that answers in YAML
        the answers are JSON, which YAML parsers accept.

        Raises:
            RescoldoError: the grammar has no schema.
        """
        if grammar.schema is None:
            raise RescoldoError("servers can be constrained only by a JSON schema", where=self.spec)
        return ServerChat(self.spec, self.model, self.url, self.options, self.entry, grammar)

    def fingerprint(self) -> str:
        """Address, name, and the server's entry for the model."""
        known = {name: self.entry[name] for name in _IDENTITY if name in self.entry}
        held = [self.grammar.schema] if self.grammar else []
        text = json.dumps([self.url, self.model, known, *held], sort_keys=True)
        return "server " + hashlib.sha256(text.encode()).hexdigest()

    def render(self, messages: Messages) -> str:
        """The messages as JSON, because the server applies the template."""
        tools = tools_of(messages)
        return json.dumps([*messages, {"tools": tools}] if tools else messages, ensure_ascii=False)

    def describe(self) -> dict[str, Any]:
        """A description of the model for documents."""
        held = {"constrained": "json", "constraint_unchecked": []} if self.grammar else {}
        return {"spec": self.spec, "server": self.url, "model": self.model, **held}

    def complete(
        self,
        conversations: Sequence[Messages],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Prediction]]:
        """Send `concurrency` requests at a time; yields (index, prediction) as each ends.

        Raises:
            RescoldoError: the server has stopped, or refuses key or model. The failure of a single request is its
                prediction's `error`.
        """
        written = 0
        with asyncio.Runner() as runner:  # leaving it cancels open requests
            client = self._client()
            tasks: set[asyncio.Task[tuple[int, Prediction]]] = set()

            async def begin() -> None:
                gate = asyncio.Semaphore(self.options.concurrency)
                for index, messages in enumerate(conversations):
                    tasks.add(asyncio.create_task(self._ask(client, gate, index, messages, sampling)))

            async def some() -> set[asyncio.Task[tuple[int, Prediction]]]:
                return (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]

            runner.run(begin())
            try:
                while tasks:
                    done = runner.run(some())
                    tasks -= done
                    for index, prediction in sorted(task.result() for task in done if not task.exception()):
                        written += prediction.tokens
                        if on_progress:
                            on_progress(written)
                        yield index, prediction
                    for task in done:  # yield finished answers before raising an error
                        task.result()
            finally:
                for task in tasks:
                    if not task.cancel():
                        task.exception()  # mark as retrieved: only the first exception is raised
                runner.run(client.close())

    def _client(self) -> AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get(KEY_VARIABLE) or "none",
            timeout=openai.Timeout(self.options.timeout, connect=PROBE_SECONDS),
            max_retries=self.options.retries,
            # a proxy is only for other machines
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_loopback(self.url)),
        )

    async def _ask(
        self, client: AsyncOpenAI, gate: asyncio.Semaphore, index: int, messages: Messages, sampling: Sampling
    ) -> tuple[int, Prediction]:
        import openai

        async with gate:
            started = time.monotonic()

            def failed(reason: str) -> tuple[int, Prediction]:
                return index, Prediction("", False, 0, time.monotonic() - started, " ".join(reason.split())[:300])

            try:
                # a timeout for all attempts: a server that sends a byte now and then never exceeds the client's own
                async with asyncio.timeout(self.options.timeout):
                    answer = await client.chat.completions.create(
                        model=self.model,
                        messages=_as_sent(messages),  # type: ignore[arg-type]
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        max_tokens=sampling.max_new_tokens,
                        seed=sampling.seed,
                        extra_body={**self._extra(), **({"tools": tools_of(messages)} if tools_of(messages) else {})},
                    )
                choice = answer.choices[0]
                text, ended = _said(choice.message), choice.finish_reason != "length"
                if self.grammar and ended and not _is_json(text):
                    raise self._unheld()
                tokens = _count(answer.usage.completion_tokens if answer.usage else 0)
            except (openai.APITimeoutError, TimeoutError):
                return failed(f"no answer within {self.options.timeout:g} s")
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                fix = (
                    f"set {KEY_VARIABLE}"
                    if not isinstance(error, openai.NotFoundError)
                    else "see what it serves: /models"
                )
                raise RescoldoError(
                    f"the server refuses: {_message(error)}", where=self.spec, fix=fix, exit_code=EXIT_FAILURE
                ) from None
            except openai.APIConnectionError as error:
                if await asyncio.to_thread(self._answers):
                    return failed(f"the connection was lost: {error.__cause__ or error}")
                raise RescoldoError(
                    "the server no longer answers",
                    where=self.spec,
                    fix="start it again and give the same command: finished answers are kept",
                    exit_code=EXIT_FAILURE,
                ) from None
            except openai.OpenAIError as error:
                return failed(_message(error))
            except (AttributeError, IndexError, TypeError, ValueError) as error:
                return failed(f"the server's answer is malformed ({error})")
            return index, Prediction(text, ended, tokens, time.monotonic() - started)

    def _extra(self) -> dict[str, Any]:
        """Parameters that the client does not know: llama.cpp restricts sampling by its own defaults unless they are
        set."""
        extra: dict[str, Any] = {"top_k": 0, "min_p": 0.0} if self.entry.get("owned_by") == "llamacpp" else {}
        if self.grammar:  # this also sets Ollama's own `format`
            schema = {"name": "answer", "schema": self.grammar.schema, "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": schema}
        return extra

    def _unheld(self) -> RescoldoError:
        """The error if an answer does not fit the schema, so the server has ignored it."""
        return RescoldoError(
            "the server does not constrain answers: it accepts response_format but does not answer in JSON",
            where=self.spec, fix="leave out constrained: for this server", exit_code=EXIT_FAILURE,
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            get_json(self.url + "/models")
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _as_sent(messages: Messages) -> list[dict[str, Any]]:
    """The messages in OpenAI's format: arguments of calls as JSON text, without thinking parts."""
    sent = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in messages]
    for message in sent:
        if "tool_calls" in message:
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
    return sent


def _said(message: Any) -> str:
    """An answer's text, followed by its tool calls in the form of role.tools.call_text.

    Raises:
        TypeError: the content is not text.
    """
    text = _text(message.content)
    if not message.tool_calls:
        return text
    calls, findings = read_calls([call.model_dump() for call in message.tool_calls], "tool_calls")
    called = findings[0].what if findings else call_text(calls)
    return _text("\n".join([*([text] if text.strip() else []), called]))


def _text(content: Any) -> str:
    """An answer's text. Lone surrogates, which JSON can contain and UTF-8 cannot, become question marks.

    Raises:
        TypeError: it is not text.
    """
    if not isinstance(content, str | None):
        raise TypeError(f"the content is a {type(content).__name__}: expected text")
    return (content or "").encode("utf-8", "replace").decode("utf-8")


def _count(tokens: Any) -> int:
    """The number of tokens that a server reports; 0 if it reports no valid one."""
    return tokens if isinstance(tokens, int) and tokens > 0 else 0


def _message(error: Exception) -> str:
    """A server's message in one line: taken from {"error": {"message": …}} if it has this form."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    status = getattr(error, "status_code", None)
    return " ".join(f"{f'HTTP {status}: ' if status else ''}{said or error}".split())[:300]
