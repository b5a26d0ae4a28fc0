"""Progress of an optimizer: the metric as DSPy calls it, and DSPy's own log."""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rescoldo.evaluation.evaluation import Console
from rescoldo.role import Role

SAY_SECONDS = 10.0
MAX_SHOWN = 4000  # maximum characters of the reference answer in feedback


# lines of GEPA's log to show: attempts, results, failures; the instructions themselves are too long
_GEPA = re.compile(
    r"Iteration \d+: (?:Found a better program on the valset with score [\d.]+|Base program full valset score: [\d.]+"
    r"|New subsample score [\d.]+ is not better than old score [\d.]+|All subsample scores perfect"
    r"|Exception during optimization: .{0,300})|Per-task reflection failed: .{0,300}"
)


class Watch:
    """The metric as DSPy calls it, with occasional progress messages."""

    def __init__(self, role: Role, records: Sequence[dict[str, Any]], console: Console | None) -> None:
        self._role, self._console = role, console
        self._records = {(role.question(record), role.target(record)): record for record in records}
        self._scored, self._sum, self._tokens, self._last = 0, 0.0, 0, time.monotonic()
        self._lock = threading.Lock()

    def metric(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """The role's score of an answer, 0..1."""
        record, text = self._asked(example, prediction)
        total = self._role.score(text, record).total
        with self._lock:
            self._scored, self._sum = self._scored + 1, self._sum + total
        self._say()
        return total

    def feedback(
        self, example: Any, prediction: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> Any:
        """The metric as GEPA calls it: the score alone, or, for one step (`pred_name`), a dspy.Prediction of score and
        textual feedback on what the answer lacks."""
        total = self.metric(example, prediction)
        if pred_name is None:
            return total
        from rescoldo.programs import import_dspy

        record, text = self._asked(example, prediction)
        return import_dspy().Prediction(score=total, feedback=feedback(self._role, record, text))

    def tokens(self, count: int) -> None:
        """Count the tokens that the model has generated."""
        self._tokens = count
        self._say()

    def _asked(self, example: Any, prediction: Any) -> tuple[dict[str, Any], str]:
        """The record of an example, and the answer to it."""
        answer = self._role.spec.answer
        record = self._records[getattr(example, self._role.input), getattr(example, answer)]
        return record, str(getattr(prediction, answer, ""))

    def _say(self) -> None:
        with self._lock:
            due = time.monotonic() - self._last >= SAY_SECONDS
            self._last = time.monotonic() if due else self._last
            mean = f", {self._sum / self._scored:.1%} on average" if self._scored else ""
        if due and self._console:
            self._console.say(f"Optimizing: {self._scored} answers scored{mean}; {self._tokens:,} tokens written")


def feedback(role: Role, record: dict[str, Any], text: str) -> str:
    """Textual feedback of the role's metric on an answer, for a model that writes a better instruction."""
    score = role.score(text, record)
    lost = [f"{name} {value:.0%}" for name, value in score.components.items() if value < 1]
    lines = [f"The score is {score.total:.2f} of 1.00."]
    if lost:
        lines.append(f"Components that lose points: {', '.join(lost)}.")
    if score.notes:
        lines += ["What is wrong:", *(f"- {note}" for note in score.notes)]
    if role.needs_answers and score.total < 1:
        lines.append(f"The right answer is:\n{role.target(record)[:MAX_SHOWN]}")
    if len(lines) == 1:
        lines.append("Nothing is missing." if score.total >= 1 else "The metric does not say why.")
    return "\n".join(lines)


class _Lines(logging.Handler):
    """Forwards the lines of DSPy's log that say what is being tried."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text.startswith(("==> STEP", "== Trial", "Score:", "Best", "Returning best", "Bootstrapped")):
            self._console.say(f"DSPy: {text.strip('=> ')}")
        elif found := _GEPA.match(text):
            self._console.say(f"GEPA: {found[0]}")


@contextmanager
def dspy_log(console: Console | None) -> Iterator[None]:
    """Send DSPy's log to the console, and suppress its other output and progress bars."""
    log, optimizers = logging.getLogger("dspy"), logging.getLogger("dspy.teleprompt")
    before, propagate, level = log.handlers[:], log.propagate, optimizers.level
    log.handlers, log.propagate = ([_Lines(console)] if console else [logging.NullHandler()]), False
    optimizers.setLevel(logging.INFO)  # only this logger: import_dspy, called in between, sets the level of the others
    try:
        yield
    finally:
        log.handlers, log.propagate = before, propagate
        optimizers.setLevel(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Run GEPA without its own progress bar, which DSPy always enables."""
    from gepa.core import engine as module

    engine: Any = module
    bar = engine.tqdm
    engine.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        engine.tqdm = bar
