"""Our models as DSPy's language model: concurrent requests of many threads are answered in one batch."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.models.cache import PredictionCache, key
from rescoldo.models.predictor import ChatModel, Messages, Prediction
from rescoldo.programs import import_dspy

QUIET_SECONDS = 0.05  # a batch starts when no request has joined it for this long
MAX_BATCH = 64

# the answers in the running thread's program, in order; None: not recorded
replies: contextvars.ContextVar[list[Prediction] | None] = contextvars.ContextVar("replies", default=None)


class StoppedError(Exception):
    """The work was cancelled while a request was waiting."""


@dataclass
class _Request:
    messages: Messages
    sampling: Sampling
    answer: Future[Prediction]


class Desk:
    """A queue through which threads ask a chat model. A context manager: at its end all waiting requests are cancelled.

    A model that batches gets all concurrent requests in one call; other models get `workers` calls at a time. Cached
    answers are not requested again.

    Attributes:
        asked, known: number of generated answers, and of answers from the cache.
        failure: why the model can no longer answer; None if it can.
    """

    def __init__(
        self,
        chat: ChatModel,
        *,
        workers: int = 4,
        cache: PredictionCache | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.chat, self.cache, self._told = chat, cache, on_progress
        self.asked = self.known = 0
        self.failure: RescoldoError | None = None
        self._fingerprint = chat.fingerprint()
        self._tokens, self._stopped, self._lock = 0, threading.Event(), threading.Lock()
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._open: dict[str, Future[Prediction]] = {}  # by the question's key
        self._workers = 1 if chat.batches else workers

    def __enter__(self) -> Desk:
        for _ in range(self._workers):  # daemons, so that a busy model does not delay Ctrl-C
            threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        for _ in range(self._workers):
            self._waiting.put(None)
        with self._lock:
            waiting = list(self._open.values())
        for answer in waiting:
            _settle(answer, StoppedError())

    def ask(self, messages: Messages, sampling: Sampling) -> Prediction:
        """The answer to a conversation; blocks until it has come. Threads may call this concurrently.

        Raises:
            RescoldoError: the model can no longer answer.
            StoppedError: the desk has closed.
        """
        name = key(self._fingerprint, self.chat.render(messages), sampling)
        kept = self.cache.get(name) if self.cache else None
        if kept is not None:
            with self._lock:
                self.known += 1
            return kept
        if self.failure:
            raise self.failure
        with self._lock:
            if self._stopped.is_set():
                raise StoppedError
            asked_by_another = self._open.get(name)
            answer = self._open.setdefault(name, Future())
        if asked_by_another:
            return answer.result()
        self._waiting.put(_Request(messages, sampling, answer))
        try:
            prediction = answer.result()
            if self.cache and not prediction.error:
                self.cache.put(name, prediction)
        finally:
            with self._lock:
                self._open.pop(name, None)
        with self._lock:
            self.asked += 1
        return prediction

    def _work(self) -> None:
        while not self._stopped.is_set():
            first = self._waiting.get()
            if first is None:
                return
            batch = [first, *(self._others() if self.chat.batches else [])]
            while batch:  # one call for each sampling configuration
                same = [request for request in batch if request.sampling == batch[0].sampling]
                batch = [request for request in batch if request.sampling != same[0].sampling]
                self._answer(same)

    def _others(self) -> list[_Request]:
        found: list[_Request] = []
        while len(found) < MAX_BATCH - 1:
            try:
                request = self._waiting.get(timeout=QUIET_SECONDS)
            except queue.Empty:
                break
            if request is None:
                self._waiting.put(None)
                break
            found.append(request)
        return found

    def _answer(self, batch: list[_Request]) -> None:
        before = self._tokens

        def told(count: int) -> None:
            if self._stopped.is_set():
                raise StoppedError
            if self._told:
                self._tokens = before + count
                self._told(self._tokens)

        try:
            for index, prediction in self.chat.complete([r.messages for r in batch], batch[0].sampling, told):
                _settle(batch[index].answer, prediction)
            raise RuntimeError("no answer came")  # for requests that are still open, if any
        except RescoldoError as error:
            self.failure = self.failure or error
            outcome: Exception = error
        except StoppedError as error:
            outcome = error
        except Exception as error:  # the waiting threads get it, since this thread's traceback would be lost
            outcome = error
        for request in batch:
            _settle(request.answer, outcome)


def _settle(answer: Future[Prediction], outcome: Prediction | Exception) -> None:
    """Set a future's result, unless it has one."""
    try:
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
    except Exception:  # InvalidStateError: it already has one
        return


class DeskEngine:
    """A desk as the engine of dspy.LM: complete(Request) -> Response."""

    def __init__(self, desk: Desk, sampling: Sampling) -> None:
        self.desk, self.sampling = desk, sampling

    def complete(self, request: Any) -> Any:
        """One answer; sampling settings in the request override the desk's."""
        from dspy import lm15

        config = request.config
        sampling = replace(
            self.sampling,
            temperature=self.sampling.temperature if config.temperature is None else float(config.temperature),
            max_new_tokens=config.max_tokens or self.sampling.max_new_tokens,
            top_p=self.sampling.top_p if config.top_p is None else float(config.top_p),
        )
        reply = self.desk.ask(conversation(request), sampling)
        seen = replies.get()
        if seen is not None:
            seen.append(reply)
        if reply.error:
            raise lm15.InvalidRequestError(reply.error)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(reply.text or " "),
            finish_reason="stop" if reply.ended else "length",
            usage=lm15.Usage(output_tokens=reply.tokens),
        )

    def stream(self, request: Any) -> Any:
        """Not supported: answers are not streamed."""
        raise NotImplementedError

    def close(self) -> None:
        """Does nothing: the desk is closed by its owner."""


def conversation(request: Any) -> Messages:
    """A DSPy request as chat messages. The system message is put in front of the first user message, because not every
    model's template supports system messages (Mistral's does not).
    """
    system = request.system if isinstance(request.system, str) else "".join(_text(p) for p in request.system or ())
    messages: Messages = []
    for message in request.messages:
        text = "".join(_text(part) for part in message.parts)
        if message.role == "developer":
            system = f"{system}\n\n{text}".strip()
        elif messages and messages[-1]["role"] == message.role:
            messages[-1]["content"] += "\n\n" + text
        else:
            messages.append({"role": message.role, "content": text})
    if system and messages and messages[0]["role"] == "user":
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
    elif system:
        messages.insert(0, {"role": "user", "content": system})
    return messages


def _text(part: Any) -> str:
    text = getattr(part, "text", None)
    if not isinstance(text, str):
        raise RescoldoError("the program's prompt contains more than text", exit_code=EXIT_FAILURE)
    return text


def make_lm(desk: Desk, sampling: Sampling) -> Any:
    """A dspy.LM that asks through this desk."""
    dspy = import_dspy()
    return dspy.LM(
        "rescoldo/desk",
        temperature=sampling.temperature,
        max_tokens=sampling.max_new_tokens,
        cache=False,
        num_retries=0,
        engine=DeskEngine(desk, sampling),
    )


def make_adapter() -> Any:
    """The adapter that writes programs' prompts and parses the answers."""
    import_dspy()
    from rescoldo.programs.adapter import TextAdapter

    return TextAdapter()
