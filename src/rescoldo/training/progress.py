"""A run's output: sentences, and progress bars on a terminal or plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from enum import Enum

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

LINE_SECONDS = 10.0  # minimum interval of plain lines, which come at optimizer steps
SILENCE_SECONDS = 60.0  # … and maximum interval, if a step takes longer than this


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """For writing to a console that may have closed. rich raises SystemExit for a pipe without a reader."""
    with contextlib.suppress(OSError, ValueError, SystemExit):
        yield


class Topic(Enum):
    """A message's topic, for receivers that select messages."""

    SETUP = "setup"  # base model, settings, data: the same for all trials of a sweep
    PROGRESS = "progress"  # progress and events of the run
    RESULT = "result"  # the run's results


class Reporter:
    """Writes to a console. A terminal that has closed (a lost ssh session) does not stop the run.

    `heading_prefix` precedes a run's heading, for a script with numbered phases.
    """

    def __init__(self, console: Console | None = None, *, heading_prefix: str = "") -> None:
        self.console = console or Console(highlight=False)
        self.heading_prefix = heading_prefix

    def say(self, text: str, topic: Topic = Topic.PROGRESS) -> None:
        """Print one line."""
        with tolerant():
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.say(f"⚠️  {text}")

    @contextlib.contextmanager
    def bar(self, description: str, total: int, done: int = 0, topic: Topic = Topic.PROGRESS) -> Iterator[Bar]:
        """A progress bar from `done` to `total`; the final line ends in 100% if it was reached."""
        if not self.console.is_terminal:
            yield Bar(self, description, total, done, None, topic)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        progress = Progress(*columns, console=self.console, refresh_per_second=4)
        progress.add_task(description, total=total, completed=done, detail="")
        with tolerant():
            progress.start()
        try:
            yield Bar(self, description, total, done, progress, topic)
        finally:
            with tolerant():
                progress.stop()


class Bar:
    """A counter with a description."""

    def __init__(
        self, reporter: Reporter, description: str, total: int, done: int, progress: Progress | None, topic: Topic
    ) -> None:
        self._reporter, self._description, self._progress, self._topic = reporter, description, progress, topic
        self.total, self.done = total, done
        self._last = time.monotonic()

    def advance(self, n: int, detail: str, milestone: bool = True) -> None:
        """Count `n` more; `detail` is shown after the count; a plain line may be printed at a `milestone`."""
        self.done += n
        if self._progress is not None and self._reporter.console.is_terminal:  # the terminal may have closed
            with tolerant():
                self._progress.update(self._progress.task_ids[0], completed=self.done, detail=detail)
            return
        waited = time.monotonic() - self._last
        if self.done >= self.total or waited >= (LINE_SECONDS if milestone else SILENCE_SECONDS):
            percent = 100 * self.done // max(1, self.total)
            count = f"{self.done}/{self.total} {percent}% | {detail}" if detail else f"{percent}%"
            self._reporter.say(f"{self._description} {count}", self._topic)
            self._last = time.monotonic()


class Speed:
    """The tokens per second of the last units of work, and the time left."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=32)

    def add(self, tokens: int, seconds: float) -> None:
        """Count finished work."""
        self._recent.append((tokens, seconds))

    @property
    def tokens_per_second(self) -> float:
        """0 before the first micro-batch."""
        seconds = sum(seconds for _, seconds in self._recent)
        return sum(tokens for tokens, _ in self._recent) / seconds if seconds > 0 else 0.0
