"""The served models, and the preparation of requests for the engine."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from rescoldo.data.tokenize import prompt_ids, stop_ids
from rescoldo.engine.types import Constraint, Sampling
from rescoldo.errors import RescoldoError
from rescoldo.models.loaded import Loaded
from rescoldo.role import Role
from rescoldo.serve.scheduler import BusyError, Job, Reason, Scheduler, StoppingError
from rescoldo.serve.schema import ChatRequest, RequestError
from rescoldo.serve.text import TextStream


@dataclass(frozen=True)
class Limits:
    """Limits on single requests and on all of them together."""

    body_bytes: int = 1 << 20
    context: int = 8192  # tokens of prompt and answer together
    max_tokens: int = 4096  # of one answer
    seconds: float = 600.0  # of one request, waiting included
    rows: int = 8  # decoded at the same time
    waiting: int = 64  # queued in addition


@dataclass
class Answer:
    """An answer in progress. `reason` is set once it is complete."""

    prompt_tokens: int
    tokens: int = 0
    reason: Reason | None = None


class Service:
    """Models by name, and the scheduler that decodes for them.

    Raises:
        RescoldoError: run and base would have the same name.
    """

    def __init__(self, loaded: Loaded, role: Role, limits: Limits, name: str = "") -> None:
        self.loaded, self.role = loaded, role
        self.limits = replace(limits, context=min(limits.context, loaded.model.config.max_positions))
        base = loaded.base.spec
        tuned = name or (loaded.run.resolve().name if loaded.run else "")
        if loaded.run and tuned == base:
            raise RescoldoError(f"{base} is the base model's name", where="--name", fix="another --name for the run")
        self.models: dict[str, bool] = {tuned: True, base: False} if loaded.run else {name or base: False}
        self.created = int(time.time())
        self._keys = itertools.count()
        self.scheduler = Scheduler(
            loaded.model,
            stop_ids(loaded.tokenizer),
            prefixes=[self._role_prefix()],
            has_adapter=loaded.run is not None,
            rows=limits.rows,
            waiting=limits.waiting,
            threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        )

    def _role_prefix(self) -> list[int]:
        """The tokens that all prompts of the role begin with."""
        try:
            asked = [self.role.messages({self.role.input: text}) for text in ("A", "b c")]
        except RescoldoError:
            return []  # the prompt uses more than one field
        one, other = (prompt_ids(messages, self.loaded.tokenizer) for messages in asked)
        return [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]

    def prepare(self, request: ChatRequest) -> tuple[list[int], Sampling]:
        """The prompt's token ids and the sampling settings.

        Raises:
            RequestError: there is no such model, the template refuses the conversation, or it has too many tokens.
        """
        if request.model not in self.models:
            what = f"there is no model {request.model[:200]!r}: expected {self.title}"
            raise RequestError(404, what, code="model_not_found", param="model")
        try:
            prompt = prompt_ids([message.turn() for message in request.messages], self.loaded.tokenizer)
        except RescoldoError as error:
            raise RequestError(400, error.what[:500], code="invalid_value", param="messages") from None
        room = self.limits.context - len(prompt)
        if room < 1 or not prompt:
            raise RequestError(
                400,
                f"the prompt has {len(prompt)} tokens: expected at most {self.limits.context} with the answer",
                code="context_length_exceeded",
                param="messages",
            )
        default = self.role.sampling
        temperature = default.temperature if request.temperature is None else request.temperature
        top_p = default.top_p if request.top_p is None else request.top_p
        return prompt, Sampling(
            temperature=temperature if top_p > 0 else 0.0,
            top_p=top_p or 1.0,
            max_new_tokens=min(request.limit or default.max_new_tokens, self.limits.max_tokens, room),
            seed=secrets.randbits(32) if request.seed is None else request.seed % (1 << 64),
        )

    def constrain(self, request: ChatRequest) -> Constraint | None:
        """The constraint that the request asks for (response_format, structured_outputs, …). This can take a second, so
        it must not run on the event loop.

        Raises:
            RequestError: the schema cannot be used.
        """
        grammar = request.grammar()
        try:
            return self.loaded.constraint(grammar) if grammar else None
        except RescoldoError as error:
            raise RequestError(400, error.what[:500], code="invalid_schema", param=request.form) from None

    def start(self, request: ChatRequest, constraint: Constraint | None = None) -> Running:
        """Submit a request to the engine.

        Raises:
            RequestError: see `prepare`; the queue is full; the server is stopping.
        """
        prompt, sampling = self.prepare(request)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[int | Reason] = asyncio.Queue()

        def emit(event: int | Reason) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        deadline = time.monotonic() + self.limits.seconds
        job = Job(next(self._keys), self.models[request.model], prompt, sampling, deadline, emit, constraint)
        try:
            self.scheduler.submit(job)
        except BusyError:
            raise RequestError(429, "too many requests are waiting; try again later", code="queue_full") from None
        except StoppingError:
            raise _stopping() from None
        return Running(self, job, events, TextStream(self.loaded.tokenizer, request.stops), request.form)

    def fingerprint(self) -> str:
        """Identifies what the answers depend on: precision and adapter."""
        return f"{self.loaded.precision}-{self.loaded.adapter_sha256[:12] or 'base'}"

    @property
    def title(self) -> str:
        """The served models, for people."""
        return ", ".join(self.models)


def _stopping() -> RequestError:
    return RequestError(503, "the server is stopping", code="stopping")


class Running:
    """A request in progress."""

    def __init__(
        self, service: Service, job: Job, events: asyncio.Queue[int | Reason], text: TextStream, form: str
    ) -> None:
        """`form`: the request's field that requires a form of answer."""
        self._service, self._job, self._events, self._text, self._form = service, job, events, text, form
        self.answer = Answer(len(job.prompt))

    async def pieces(self) -> AsyncIterator[str]:
        """The answer's text, piece by piece.

        Raises:
            RequestError: it took too long, the engine failed, or the server stops.
        """
        while self.answer.reason is None:
            event = await self._events.get()
            if isinstance(event, int):
                self.answer.tokens += 1
                piece = self._text.push(event)
                if self._text.stopped:
                    self.close()
                    self.answer.reason = "stop"
            elif event == "timeout":
                raise RequestError(504, f"no answer within {self._service.limits.seconds:g} s", code="timeout")
            elif event == "stopping":
                raise _stopping()
            elif event == "constraint":
                what = f"the answer cannot continue in the form that {self._form} requires"
                raise RequestError(400, what, code="constraint_failed", param=self._form)
            elif event == "error":
                raise RequestError(500, "the engine could not answer (memory?)", code="engine_error")
            else:
                piece = self._text.finish()
                self.answer.reason = "stop" if self._text.stopped else event
            if piece:
                yield piece

    def close(self) -> None:
        """Cancel the request."""
        self._service.scheduler.cancel(self._job.key)
