"""`rescoldo eval`: answer a dataset with a model and score the answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from rescoldo.allowed import check_number
from rescoldo.errors import EXIT_FAILURE, EXIT_INTERRUPTED, RescoldoError
from rescoldo.units import clock

EXAMPLE = "eval artifacts/demo/run --dataset artifacts/synthetic/ba_val_v2_fixed.jsonl -o eval.json"


def eval_(
    model: Annotated[str, typer.Argument(help="Run directory, or a base model (directory, GGUF, ollama:, sample:).")],
    dataset: Annotated[Path, typer.Option(help="Records to answer (JSON Lines).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON to write; a Markdown report is written next to it.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training set, to detect copied passages. (default the run's)")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Score the run's base model, without its adapter.")] = False,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Constrain answers to the role's schema (constrained decoding).")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. (default the role's, 0 for ba)")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling; 1 is off. (default the role's)")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens of an answer. (default the role's, 2048 for ba)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 42,
    samples: Annotated[
        int, typer.Option(help="Answers to each record (with increasing seeds): pass@k and best of k.")
    ] = 1,
    limit: Annotated[int | None, typer.Option(help="Use only the first N records.")] = None,
    quantization: Annotated[
        str, typer.Option(help="Precision of the base model: auto (the run's), int8, nf4 (or bnb4), bf16, fp32.")
    ] = "auto",
    role: Annotated[
        str | None,
        typer.Option(help="Role with prompt and metric: name, file or folder. (default the run's own, else ba)"),
    ] = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Measure each answer's perplexity under the base model, too.")
    ] = False,
    choices: Annotated[
        bool, typer.Option("--choices", help="Measure the probability of each label, if the answers are labels.")
    ] = False,
    lang: Annotated[str, typer.Option(help="Language of reports, tables and verdict: en or es.")] = "en",
    json_: Annotated[bool, typer.Option("--json", help="Print the JSON document, nothing else.")] = False,
) -> None:
    """Score a model on a dataset: the metric, its components, and signs of recitation.

    The same command resumes after an interruption (with --output).
    """
    check_sampling(temperature, top_p, max_new_tokens)
    from dataclasses import replace

    from rescoldo.evaluation.document import reports_beside
    from rescoldo.evaluation.evaluation import evaluate_model, role_for
    from rescoldo.evaluation.language import language

    given = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    language(lang)
    console = TerminalConsole(quiet=json_)
    with going_on(f"{output}.partial.jsonl" if output else ""):
        document = evaluate_model(
            model,
            dataset,
            role=role,
            output=output,
            train=train,
            sampling=replace(role_for(model, role).sampling, **changes),
            samples=samples,
            limit=limit,
            base=base,
            constrained=constrained,
            quantization=quantization,
            perplexity=perplexity,
            choices=choices,
            lang=lang,
            console=console,
        )
    if json_:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console as RichConsole

    from rescoldo.evaluation.report import print_evaluation

    print_evaluation(document, RichConsole())
    if output is not None:
        print("Written: " + ", ".join(map(str, [output, *reports_beside(output)])))


@contextmanager
def going_on(kept: str) -> Iterator[None]:
    """For work that Ctrl-C may stop: prints where its answers are `kept` ("" if they are not). Losing the terminal or
    pipe does not end the work.

    Raises:
        RescoldoError: standard output has closed, and the result was to be printed only there.
    """
    from rescoldo.run.streams import lost, unfailing

    try:
        with unfailing(None):
            yield
        if lost(1) and not kept:
            what = f"the result cannot be printed ({lost(1)})"
            raise RescoldoError(what, fix="give --output: the result is written there", exit_code=EXIT_FAILURE)
    except KeyboardInterrupt:
        how = (
            f"the answers so far are in {kept}; the same command resumes"
            if kept
            else "with --output it could be resumed"
        )
        print(f"interrupted: {how}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def check_sampling(temperature: float | None, top_p: float | None, max_new_tokens: int | None) -> None:
    """Raise RescoldoError if a sampling flag is out of range."""
    check_number("--temperature", temperature, ge=0, le=100)
    check_number("--top-p", top_p, gt=0, le=1)
    check_number("--max-new-tokens", max_new_tokens, whole=True, ge=1, le=1_000_000)


class TerminalConsole:
    """Progress for people: a bar on a terminal, plain lines elsewhere; with `quiet` only on standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        from rescoldo.training.progress import Reporter

        self._reporter = Reporter(Console(stderr=True, highlight=False) if quiet else None)

    def say(self, text: str) -> None:
        """Print one line."""
        self._reporter.say(text)

    @contextmanager
    def answering(self, name: str, total: int, done: int, most_tokens: int) -> Iterator[_Rows]:
        """A bar over rows of at most `most_tokens` tokens each that shows tokens per second and the time left."""
        with self._reporter.bar(f"Answering ({name}):", total, done) as bar:
            yield _Rows(bar, done, most_tokens)


class _Rows:
    def __init__(self, bar: Any, done: int, most_tokens: int) -> None:
        self._bar, self._done, self._tokens, self._started = bar, done, 0, time.monotonic()
        self._before, self._most = done, most_tokens

    def tokens(self, count: int) -> None:
        self._tokens = count
        if self._done < self._bar.total:
            self._bar.advance(0, self._detail())

    def rows(self, done: int) -> None:
        self._bar.advance(done - self._done, self._detail())
        self._done = done

    def _detail(self) -> str:
        seconds = time.monotonic() - self._started
        if seconds <= 0 or not self._tokens:
            return ""
        rate = self._tokens / seconds
        return f"{self._tokens:,} tokens, {rate:.0f} tokens/s{self._left(rate, seconds)}"

    def _left(self, rate: float, seconds: float) -> str:
        """The time left if all rows reach the maximum length, or less if rows end earlier."""
        done, rows = self._done - self._before, self._bar.total - self._before
        if done >= rows:
            return ""
        longest = max(0.0, rows * self._most - self._tokens) / rate
        if not done:
            return f", at most {clock(longest)} left"
        return f", about {clock(min(longest, seconds * (rows - done) / done))} left"
