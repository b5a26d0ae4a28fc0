"""The HTTP side: routes, limits, errors in OpenAI's format, streams of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rescoldo.serve.access import Access
from rescoldo.serve.schema import ChatRequest, RequestError, parse_request
from rescoldo.serve.service import Running, Service

_BODY_SECONDS = 30.0


def make_app(service: Service, access: Access) -> Starlette:
    """The ASGI application. Requests that `access` refuses do not reach the service."""

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            access.check_key(request)
            return await handler(request)

        return handle

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.models:
            raise RequestError(404, f"there is no model {name[:200]!r}", code="model_not_found", param="model")
        return JSONResponse(_model(service, name))

    async def chat(request: Request) -> Response:
        asked = parse_request(await _body(request, service.limits.body_bytes))
        constraint = await asyncio.to_thread(service.constrain, asked) if asked.has_form else None
        running = service.start(asked, constraint)
        if asked.stream:
            return _EventStream(running, _events(service, asked, running))
        return await _whole(service, asked, running, request)

    async def health(request: Request) -> Response:
        decoding, waiting = service.scheduler.load()
        return JSONResponse({"status": "ok", "decoding": decoding, "waiting": waiting})

    return Starlette(
        routes=[
            Route("/v1/models", guarded(models)),
            Route("/v1/models/{name:path}", guarded(model)),
            Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
            Route("/health", health),
        ],
        middleware=access.middleware(),
        exception_handlers={RequestError: _refused, HTTPException: _no_such_route, Exception: _failed},
    )


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "rescoldo"}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
    return JSONResponse(error.document(), error.status, headers={**headers, **error.headers})


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"there is no {request.method} {request.url.path[:200]}"
    return JSONResponse(RequestError(error.status_code, what).document(), error.status_code, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(RequestError(500, "the server failed", code="internal_error").document(), 500)


async def _body(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        RequestError: its Content-Type is not JSON (web pages cannot send JSON without a CORS preflight), it is too
            long, or it arrives too slowly.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "Content-Type must be application/json", code="invalid_content_type")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise RequestError(413, f"the body is longer than {limit} bytes", code="body_too_large")
    except TimeoutError:
        raise RequestError(408, "the body did not arrive in time", code="timeout") from None
    except ClientDisconnect:
        raise RequestError(400, "the client went away") from None
    return bytes(body)


def _head(service: Service, request: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": service.fingerprint(),
    }


def _usage(running: Running) -> dict[str, int]:
    asked, answered = running.answer.prompt_tokens, running.answer.tokens
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


async def _whole(service: Service, asked: ChatRequest, running: Running, request: Request) -> Response:
    """The answer in one piece; cancelled if the client disconnects."""

    async def collect() -> str:
        return "".join([piece async for piece in running.pieces()])

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, left = asyncio.create_task(collect()), asyncio.create_task(gone())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # the client has disconnected
        message = {"role": "assistant", "content": work.result(), "refusal": None}
    finally:
        running.close()
        for task in (work, left):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(work, left, return_exceptions=True)
    choice = {"index": 0, "message": message, "finish_reason": running.answer.reason, "logprobs": None}
    return JSONResponse({**_head(service, asked, "chat.completion"), "choices": [choice], "usage": _usage(running)})


class _EventStream(StreamingResponse):
    """A stream that cancels its request when it ends, for whatever reason."""

    def __init__(self, running: Running, content: AsyncIterator[str]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.close()


async def _events(service: Service, asked: ChatRequest, running: Running) -> AsyncIterator[str]:
    head = _head(service, asked, "chat.completion.chunk")
    usage = bool(asked.stream_options and asked.stream_options.include_usage)

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _line({**head, "choices": [choice], **({"usage": None} if usage else {})})

    yield event({"role": "assistant", "content": ""})
    try:
        async for piece in running.pieces():
            yield event({"content": piece})
    except RequestError as error:
        yield _line(error.document())
        return
    yield event({}, running.answer.reason)
    if usage:
        yield _line({**head, "choices": [], "usage": _usage(running)})
    yield "data: [DONE]\n\n"


def _line(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
