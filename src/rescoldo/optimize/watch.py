"""How far an optimizer is: the metric as DSPy calls it, and DSPy's own log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rescoldo.evaluation.evaluation import Console
from rescoldo.role import Role

SAY_SECONDS = 10.0


class Watch:
    """The metric as DSPy calls it, and a word now and then on how far it is."""

    def __init__(self, role: Role, records: Sequence[dict[str, Any]], console: Console | None) -> None:
        self._role, self._console = role, console
        self._records = {(role.question(record), role.target(record)): record for record in records}
        self._scored, self._sum, self._tokens, self._last = 0, 0.0, 0, time.monotonic()
        self._lock = threading.Lock()

    def metric(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """The role's score of an answer, 0..1."""
        answer = self._role.spec.answer
        record = self._records[getattr(example, self._role.input), getattr(example, answer)]
        total = self._role.score(str(getattr(prediction, answer, "")), record).total
        with self._lock:
            self._scored, self._sum = self._scored + 1, self._sum + total
        self._say()
        return total

    def tokens(self, count: int) -> None:
        """The model has written so many."""
        self._tokens = count
        self._say()

    def _say(self) -> None:
        with self._lock:
            due = time.monotonic() - self._last >= SAY_SECONDS
            self._last = time.monotonic() if due else self._last
            mean = f", {self._sum / self._scored:.1%} on average" if self._scored else ""
        if due and self._console:
            self._console.say(f"Optimizing: {self._scored} answers scored{mean}; {self._tokens:,} tokens written")


class _Lines(logging.Handler):
    """DSPy's own log lines, those that say what is being tried."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text.startswith(("==> STEP", "== Trial", "Score:", "Best", "Returning best", "Bootstrapped")):
            self._console.say(f"DSPy: {text.strip('=> ')}")


@contextmanager
def dspy_log(console: Console | None) -> Iterator[None]:
    """What DSPy logs goes to the console, the rest of it and its bars nowhere."""
    log = logging.getLogger("dspy")
    before, propagate, level = log.handlers[:], log.propagate, log.level
    log.handlers, log.propagate = ([_Lines(console)] if console else [logging.NullHandler()]), False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers, log.propagate = before, propagate
        log.setLevel(level)
