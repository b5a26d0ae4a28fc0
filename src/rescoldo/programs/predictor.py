"""A DSPy program as a predictor: its instructions and examples in front of any model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.models.cache import PredictionCache
from rescoldo.models.predictor import ChatModel, Prediction
from rescoldo.programs import import_dspy
from rescoldo.programs.lm import MAX_BATCH, Desk, StoppedError, make_adapter, make_lm, replies
from rescoldo.programs.program import Program
from rescoldo.programs.state import known_outputs
from rescoldo.role import Role


class ProgramPredictor:
    """A program over a chat model. See Predictor."""

    def __init__(
        self,
        spec: str,
        program: Program,
        chat: ChatModel,
        role: Role,
        name: str,
        *,
        workers: int = 4,
        cache: PredictionCache | None = None,
    ) -> None:
        """`cache`: of the model's own answers, if several programs share it."""
        self.spec, self.program, self.chat, self.role, self.name = spec, program, chat, role, name
        self.workers, self.cache = workers, cache

    def fingerprint(self) -> str:
        """The program's state, the version of DSPy that writes its prompts, the model."""
        state = self.program.sha256 or hashlib.sha256(
            json.dumps(self.program.module.dump_state(), sort_keys=True, default=str).encode()
        ).hexdigest()  # fmt: skip
        return f"dspy {import_dspy().__version__} {state} {self.chat.fingerprint()}"

    def prompt(self, record: dict[str, Any]) -> str:
        """The record's input, without the program's instructions and examples."""
        return self.role.question(record)

    def describe(self) -> dict[str, Any]:
        """The program, its number of examples, and its model."""
        steps = {"steps": list(self.program.steps)} if self.program.steps else {}
        return {"spec": self.spec, "program_sha256": self.program.sha256, "demos": self.program.demos,
                **steps, "model": self.chat.describe()}  # fmt: skip

    def predict(
        self, records: Sequence[dict[str, Any]], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        """Run the program in threads, so that the model can answer several inputs at a time.

        Raises:
            RescoldoError: the model can no longer answer.
        """
        dspy = import_dspy()
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Prediction | BaseException]] = queue.SimpleQueue()
        for index in range(len(records)):
            todo.put(index)
        with Desk(self.chat, workers=self.workers, cache=self.cache, on_progress=on_progress) as desk:
            lm, adapter = make_lm(desk, sampling), make_adapter()

            def work() -> None:
                with contextlib.suppress(queue.Empty), dspy.context(lm=lm, adapter=adapter):
                    while True:
                        index = todo.get_nowait()
                        try:
                            done.put((index, self._one(records[index])))
                        except BaseException as error:  # raised again in the waiting thread
                            done.put((index, desk.failure or error))

            for _ in range(min(len(records), MAX_BATCH if self.chat.batches else self.workers)):
                threading.Thread(target=work, daemon=True).start()
            for _ in records:
                index, outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield index, outcome

    def _one(self, record: dict[str, Any]) -> Prediction:
        """The program's answer. An answer that DSPy cannot parse into fields is scored as plain text."""
        started = time.monotonic()
        seen: list[Prediction] = []
        token = replies.set(seen)
        fields: dict[str, Any] | None = None
        error = ""
        try:
            found = self.program.module(**{self.role.input: self.role.question(record)})
            fields = dict(found.toDict())
        except (RescoldoError, StoppedError):
            raise
        except Exception as failed:  # DSPy raises many types
            stopped = _cause(failed, (RescoldoError, StoppedError))
            if stopped:
                raise stopped from None
            failure = next((reply.error for reply in seen if reply.error), "")
            error = failure or ("" if seen else f"{type(failed).__name__}: {' '.join(str(failed).split())[:300]}")
        finally:
            replies.reset(token)
        ended, tokens = all(reply.ended for reply in seen), sum(reply.tokens for reply in seen)
        seconds = time.monotonic() - started
        if error:
            return Prediction("", False, tokens, seconds, error)
        if fields is None:
            return Prediction(seen[-1].text, ended, tokens, seconds)
        outputs = self.program.outputs or known_outputs(fields, self.role, self.spec)
        fields = {name: fields.get(name) for name in outputs}
        if outputs == (self.role.spec.answer,):
            (value,) = fields.values()
            return Prediction(value if isinstance(value, str) else _as_text(value), ended, tokens, seconds)
        plain = json.loads(json.dumps(fields, default=_plain))
        return Prediction(_as_text(plain), ended, tokens, seconds, fields=plain)


def _cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first exception of these kinds in an error's chain of causes."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error


def _plain(value: Any) -> Any:
    """A value as JSON types: pydantic models become mappings."""
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) else str(value)


def _as_text(value: Any) -> str:
    """A program's fields as YAML, for parsing and display."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=float("inf")).rstrip("\n")
