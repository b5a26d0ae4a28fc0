"""A model behind an OpenAI-compatible server: llama.cpp, vLLM, Ollama's /v1 and the like."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.evaluate.predictor import Messages, Prediction

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PROBE_SECONDS = 10.0
KEY_VARIABLE = "OPENAI_API_KEY"
OLLAMA = "http://127.0.0.1:11434"
_IDENTITY = ("id", "owned_by", "root", "meta", "digest")  # of what a server says about a model, what does not change
_MAX_ANSWER = 16 << 20


@dataclass(frozen=True)
class ServerOptions:
    """How a server is asked: requests at a time, seconds for one answer, further tries after a failure."""

    concurrency: int = 4
    timeout: float = 1800.0
    retries: int = 3


def open_server(spec: str, options: ServerOptions | None = None) -> ServerChat:
    """The model that `openai:MODEL@URL` or `ollama:NAME` names, once its server has said that it is there.

    Ollama is asked at $OLLAMA_HOST, else 127.0.0.1:11434.

    Raises:
        RescoldoError: a malformed spec, nobody listens, the key is refused, the model is not there.
    """
    kind, _, rest = spec.partition(":")
    if kind == "ollama":
        host = ollama_host()
        return ServerChat(spec, rest, host + "/v1", options or ServerOptions(), _ollama_entry(rest, host))
    model, at, url = _split(rest)
    parts = _parsed(url)
    if not model or not at or parts is None:
        raise RescoldoError(
            "names no model and server",
            where=spec[:200],
            fix="write openai:MODEL@URL, as openai:m@http://127.0.0.1:8080/v1",
        )
    if parts.username or parts.password or parts.query:
        raise RescoldoError(
            "a key does not belong into the address: it would stand in the result",
            where=f"openai:{model}@…",
            fix=f"put it into the environment: {KEY_VARIABLE}",
        )
    url = url.rstrip("/")
    return ServerChat(spec, model, url, options or ServerOptions(), _entry(model, url))


def _split(rest: str) -> tuple[str, bool, str]:
    """MODEL@URL; a model's name may itself hold an @."""
    for scheme in ("@http://", "@https://"):
        place = rest.rfind(scheme)
        if place >= 0:
            return rest[:place], True, rest[place + 1 :]
    return rest, False, ""


def _parsed(url: str) -> Any:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a port that is none raises here
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def ollama_host() -> str:
    """Ollama's address as its own programs find it: $OLLAMA_HOST in any of its forms, else 127.0.0.1:11434.

    Raises:
        RescoldoError: $OLLAMA_HOST is no address.
    """
    text = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'").rstrip("/")
    if not text:
        return OLLAMA
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    if rest.startswith(":"):
        rest = "127.0.0.1" + rest
    parts = _parsed(f"{scheme}://{rest}")
    if parts is None:
        raise RescoldoError(f"{text!r} is no address", where="OLLAMA_HOST", fix=f"for example {OLLAMA}")
    # what a server listens on (all interfaces) is no address to call
    name = "127.0.0.1" if parts.hostname == "0.0.0.0" else parts.hostname
    name = f"[{name}]" if ":" in name else name
    port = parts.port or {"https": 443}.get(scheme, 80 if found else 11434)
    return f"{scheme}://{name}:{port}{parts.path}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _get_json(url: str) -> Any:
    """What a GET returns; None where it is no JSON or not found.

    Raises:
        OSError, urllib.error.HTTPError: nobody listens, or the server says no.
    """
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {}
    handlers = [urllib.request.ProxyHandler({})] if _is_loopback(url) else []
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=PROBE_SECONDS) as answer:
            return json.loads(answer.read(_MAX_ANSWER))
    except urllib.error.HTTPError as error:
        if error.code in (404, 405, 501):
            return None
        raise
    except (ValueError, RecursionError):
        return None


def _listed(url: str, where: str, start: str) -> list[dict[str, Any]]:
    """The models that a server says it has, [] where it does not say.

    Raises:
        RescoldoError: nobody listens, or the key is refused.
    """
    try:
        found = _get_json(url)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise RescoldoError(
                f"the server refuses the key ({error.code})",
                where=where,
                fix=f"set {KEY_VARIABLE} to one that it takes",
            ) from None
        raise RescoldoError(
            f"the server answers {error.code} {error.reason}", where=url, exit_code=EXIT_FAILURE
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RescoldoError(f"no server answers ({reason})", where=where, fix=start, exit_code=EXIT_FAILURE) from None
    rows = (found.get("data") or found.get("models") or []) if isinstance(found, dict) else []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _entry(model: str, url: str) -> dict[str, Any]:
    """What the server says about a model; {} where it does not list it (many take any name)."""
    rows = _listed(url + "/models", f"openai:{model}@{url}", "start it, or correct the address (it mostly ends in /v1)")
    return next((row for row in rows if row.get("id") == model), rows[0] if len(rows) == 1 else {})


def _ollama_entry(name: str, host: str) -> dict[str, Any]:
    """Ollama's own entry of a model, with its digest.

    Raises:
        RescoldoError: Ollama does not listen, or has not pulled it.
    """
    where = f"ollama:{name}"
    start = (
        f"start it with `ollama serve` (asked: {host}; OLLAMA_HOST names another address), or let this program's own "
        f"engine answer with the file in Ollama's store: engine:{where}"
    )
    rows = _listed(host + "/api/tags", where, start)
    wanted = name if ":" in name.rpartition("/")[2] else name + ":latest"
    names = [str(row.get("name") or row.get("model") or "") for row in rows]
    for row, found in zip(rows, names, strict=True):
        if found == wanted:
            return {"id": found, "digest": row.get("digest")}
    listed = f" It holds: {', '.join(names[:20])}" if names else ""
    raise RescoldoError(f"Ollama at {host} does not hold this model.{listed}", where=where, fix=f"ollama pull {name}")


class ServerChat:
    """A model behind a server. See ChatModel."""

    batches = False

    def __init__(self, spec: str, model: str, url: str, options: ServerOptions, entry: dict[str, Any]) -> None:
        self.spec, self.model, self.url, self.options, self.entry = spec, model, url, options, entry

    def fingerprint(self) -> str:
        """Address, name, and what the server says about the model."""
        known = {name: self.entry[name] for name in _IDENTITY if name in self.entry}
        text = json.dumps([self.url, self.model, known], sort_keys=True)
        return "server " + hashlib.sha256(text.encode()).hexdigest()

    def render(self, messages: Messages) -> str:
        """The messages as JSON: the server applies the template."""
        return json.dumps(messages, ensure_ascii=False)

    def describe(self) -> dict[str, Any]:
        """What a document says about the model itself."""
        return {"spec": self.spec, "server": self.url, "model": self.model}

    def complete(
        self,
        conversations: Sequence[Messages],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Prediction]]:
        """`concurrency` requests at a time; yields (index, prediction) as each ends.

        Raises:
            RescoldoError: the server is gone, or refuses key or model. What one request failed on is its prediction's
                error.
        """
        written = 0
        with asyncio.Runner() as runner:  # its end cancels what is still asked for
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
                    for task in done:  # what could be had is given before what went wrong
                        task.result()
            finally:
                for task in tasks:
                    if not task.cancel():
                        task.exception()  # seen: the first one is told
                runner.run(client.close())

    def _client(self) -> AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get(KEY_VARIABLE) or "none",
            timeout=openai.Timeout(self.options.timeout, connect=PROBE_SECONDS),
            max_retries=self.options.retries,
            # a proxy is for what is elsewhere
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not _is_loopback(self.url)),
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
                answer = await client.chat.completions.create(
                    model=self.model,
                    messages=messages,  # type: ignore[arg-type]
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_new_tokens,
                    seed=sampling.seed,
                    extra_body=self._extra(),
                )
                choice = answer.choices[0]
                text, ended = choice.message.content or "", choice.finish_reason != "length"
                tokens = answer.usage.completion_tokens if answer.usage else 0
            except openai.APITimeoutError:
                return failed(f"no answer within {self.options.timeout:g} s")
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                fix = (
                    f"set {KEY_VARIABLE}"
                    if not isinstance(error, openai.NotFoundError)
                    else "see what it serves: /models"
                )
                raise RescoldoError(
                    f"the server says no: {_message(error)}", where=self.spec, fix=fix, exit_code=EXIT_FAILURE
                ) from None
            except openai.APIConnectionError as error:
                if await asyncio.to_thread(self._answers):
                    return failed(f"the connection broke: {error.__cause__ or error}")
                raise RescoldoError(
                    "the server does not answer any more",
                    where=self.spec,
                    fix="start it again and give the same command: answers that came are kept",
                    exit_code=EXIT_FAILURE,
                ) from None
            except openai.OpenAIError as error:
                return failed(_message(error))
            except (AttributeError, IndexError, TypeError, ValueError) as error:
                return failed(f"the server's answer has not the form that it should have ({error})")
            return index, Prediction(str(text), bool(ended), int(tokens), time.monotonic() - started)

    def _extra(self) -> dict[str, Any]:
        """llama.cpp narrows the choice by settings of its own unless told not to; the API has no word for them."""
        return {"top_k": 0, "min_p": 0.0} if self.entry.get("owned_by") == "llamacpp" else {}

    def _answers(self) -> bool:
        try:
            _get_json(self.url + "/models")
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


def _message(error: Exception) -> str:
    """What a server said, in one line: its own message out of {"error": {"message": …}}, where it has that form."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    status = getattr(error, "status_code", None)
    return " ".join(f"{f'HTTP {status}: ' if status else ''}{said or error}".split())[:300]
