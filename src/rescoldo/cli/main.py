"""The `rescoldo` command. Each command has its own module, and imports what it needs when it is called."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator

import typer

from rescoldo.cli.chat import EXAMPLE as CHAT_EXAMPLE
from rescoldo.cli.chat import chat
from rescoldo.cli.command import example, prepare
from rescoldo.cli.compare import EXAMPLE as COMPARE_EXAMPLE
from rescoldo.cli.compare import compare
from rescoldo.cli.data import data
from rescoldo.cli.doctor import EXAMPLE as DOCTOR_EXAMPLE
from rescoldo.cli.doctor import doctor
from rescoldo.cli.eval import EXAMPLE as EVAL_EXAMPLE
from rescoldo.cli.eval import eval_
from rescoldo.cli.export import EXAMPLE as EXPORT_EXAMPLE
from rescoldo.cli.export import export
from rescoldo.cli.merge import EXAMPLE as MERGE_EXAMPLE
from rescoldo.cli.merge import merge
from rescoldo.cli.optimize import EXAMPLE as OPTIMIZE_EXAMPLE
from rescoldo.cli.optimize import optimize
from rescoldo.cli.plan import EXAMPLE as PLAN_EXAMPLE
from rescoldo.cli.plan import plan
from rescoldo.cli.review import EXAMPLE as REVIEW_EXAMPLE
from rescoldo.cli.review import review
from rescoldo.cli.role import role
from rescoldo.cli.serve import EXAMPLE as SERVE_EXAMPLE
from rescoldo.cli.serve import serve
from rescoldo.cli.status import list_, logs, status, stop
from rescoldo.cli.sweep import EXAMPLE as SWEEP_EXAMPLE
from rescoldo.cli.sweep import sweep
from rescoldo.cli.train import EXAMPLE as TRAIN_EXAMPLE
from rescoldo.cli.train import train
from rescoldo.cli.verify import verify
from rescoldo.cli.watch import EXAMPLE as WATCH_EXAMPLE
from rescoldo.cli.watch import watch
from rescoldo.errors import EXIT_FAILURE, EXIT_INTERRUPTED, RescoldoError
from rescoldo.run.exits import note_error
from rescoldo.run.streams import fill_absent
from rescoldo.system.cgroup import hold_libraries_to_quota
from rescoldo.version import __version__

app = typer.Typer(
    name="rescoldo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Fine-tune a language model with LoRA on this CPU, survive interruptions, and learn whether it was worth it.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rescoldo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Global options."""


app.command(epilog=example(TRAIN_EXAMPLE))(train)
app.command(epilog=example(DOCTOR_EXAMPLE))(doctor)
app.command(epilog=example(PLAN_EXAMPLE))(plan)
app.command(epilog=example("status artifacts/mine --json"))(status)
app.command(epilog=example(WATCH_EXAMPLE))(watch)
app.command(epilog=example("logs -f artifacts/mine"))(logs)
app.command(epilog=example("stop artifacts/mine"))(stop)
app.command("list", epilog=example("list artifacts"))(list_)
app.command(epilog=example("verify artifacts/mine"))(verify)
app.add_typer(data, name="data")
app.add_typer(role, name="role")
app.command(epilog=example(SWEEP_EXAMPLE))(sweep)
app.command("eval", epilog=example(EVAL_EXAMPLE))(eval_)
app.command("export", epilog=example(EXPORT_EXAMPLE))(export)
app.command(epilog=example(MERGE_EXAMPLE))(merge)
app.command("serve", epilog=example(SERVE_EXAMPLE))(serve)
app.command("chat", epilog=example(CHAT_EXAMPLE))(chat)
app.command(epilog=example(COMPARE_EXAMPLE))(compare)
app.command(epilog=example(REVIEW_EXAMPLE))(review)
app.command(epilog=example(OPTIMIZE_EXAMPLE))(optimize)
prepare(app)


def run_app(application: typer.Typer) -> int:
    """Run a typer application; users see one message instead of a traceback. Returns the exit code."""
    prepare(application)
    fill_absent()
    hold_libraries_to_quota()
    code = _run(application)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # the reader has gone: avoid a second message at interpreter exit
        code = code or EXIT_FAILURE
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)
    return code


def _run(application: typer.Typer) -> int:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or log with a limited encoding must not cause failures
    try:
        with _memory_errors():
            code = application(standalone_mode=True)
    except RescoldoError as error:
        return _refused(error)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILURE
    except OSError as error:  # not handled by the command: standard output's disk is full, a path is unreadable
        where = "" if error.filename is None else str(error.filename)
        return _refused(RescoldoError(error.strerror or str(error), where=where, exit_code=EXIT_FAILURE))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_FAILURE
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """memory_errors_in_words, imported on use: it imports psutil, which `--help` does not need."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        try:
            from rescoldo.system.memory import memory_errors_in_words
        except (MemoryError, ImportError, OSError):  # too little memory even for that import
            fix = "end other programs, raise `ulimit -v`, or need less: a smaller --max-length or base model"
            raise RescoldoError("there is no memory left", where="memory", fix=fix, exit_code=EXIT_FAILURE) from error
        with memory_errors_in_words():
            raise error


def _refused(error: RescoldoError) -> int:
    """Print the error; with --json also on standard output, for programs. Returns the exit code."""
    if "--json" in sys.argv:
        document = {"status": "failed", "error": str(error), **error.document()}
        with contextlib.suppress(OSError):  # this output may be what cannot be written
            print(json.dumps(document, ensure_ascii=False), flush=True)
    with contextlib.suppress(OSError):  # the terminal has closed: the exit code still reports the error
        print(f"error: {error}", file=sys.stderr, flush=True)
    note_error(error)
    return error.exit_code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_app(app))
