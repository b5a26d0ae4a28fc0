"""Parsing of options for all commands: help texts are shown literally, and a wrong option gives one clear message."""

from __future__ import annotations

import shlex
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rescoldo.allowed import number, refused
from rescoldo.cli.options import OPTIONS
from rescoldo.errors import RescoldoError
from rescoldo.invocation import program
from rescoldo.names import similar

if TYPE_CHECKING:
    _Base = TyperCommand
else:
    _Base = object
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


class _Plain(_Base):
    """The common part of commands and groups: usage errors are RescoldoErrors, and help texts may contain brackets."""

    escaped = False  # whether its help texts are already escaped for rich's markup

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, with its texts shown literally."""
        _escape_help(self)
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The possible completions, with their help texts shown literally."""
        _escape_help(self)
        return super().shell_complete(ctx, incomplete)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise RescoldoError if typer refuses the arguments."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise _explained(error, ctx, _option_names(self)) from None


class Command(_Plain, TyperCommand):
    """A command: see _Plain."""


class Group(_Plain, TyperGroup):
    """A group of commands: see _Plain."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Raise RescoldoError if there is no such command."""
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            close = get_close_matches(args[0], list(self.commands), n=1, cutoff=0.5) if args else []
            called = _called(ctx)
            fix = f"did you mean {called} {close[0]}?" if close else f"{called} --help lists the commands"
            raise RescoldoError(str(error).rstrip(".").partition(" Did you mean")[0].rstrip("."), fix=fix) from None


def prepare(application: typer.Typer) -> None:
    """Make all of `application`'s commands and groups use these classes. Idempotent."""
    application.info.cls = Group
    for command in application.registered_commands:
        command.cls = Command
    for group in application.registered_groups:
        group.cls = Group
        if group.typer_instance is not None:
            prepare(group.typer_instance)


def example(words: str) -> str:
    """The epilog of a command's help: `words` after this program's name as the user types it."""
    return f"Example: {program()} {words}"


def _escape_help(command: Any) -> None:
    """Escape the help texts of a command and its subcommands, because typer reads them as rich's markup, in which
    [name] would vanish.

    Only called when help is shown, since importing rich takes longer than all of `status`.
    """
    from rich.markup import escape

    for one in (command, *getattr(command, "commands", {}).values()):
        if one.escaped:
            continue
        one.escaped = True
        one.help = escape(one.help) if one.help else one.help
        one.epilog = escape(one.epilog) if one.epilog else one.epilog
        for parameter in one.params:
            text = getattr(parameter, "help", None)
            if text:
                parameter.help = escape(text)


def _option_names(command: Any) -> list[str]:
    return [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")]  # fmt: skip


def _called(ctx: Any) -> str:
    """The command as the user types it: `.venv/bin/rescoldo data split`, `python scripts/finetune_ba.py`."""
    names: list[str] = []
    while ctx is not None:
        names.insert(0, str(ctx.info_name))
        ctx = ctx.parent
    root = f"python {shlex.quote(sys.argv[0])}" if names[0].endswith(".py") else program()
    return " ".join([root, *names[1:]])


def _explained(error: Any, ctx: Any, known: list[str]) -> RescoldoError:
    """typer's message about the arguments, with a suggestion of what to type."""
    name = getattr(error, "option_name", "")
    fix = f"{_called(ctx)} --help lists the options"
    if type(error).__name__ == "NoSuchOption":
        close = similar(name, known)
        return RescoldoError(f"there is no option {name}", fix=f"did you mean {close}?" if close else fix)
    parameter = getattr(error, "param", None)
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    if parameter is None or not problems or problems[0]["type"] not in _NUMBERS:
        return RescoldoError(error.format_message().rstrip("."), fix=fix)
    return RescoldoError(f"{parameter.opts[0]} {refused(problems[0]['input'], _allowed(parameter))}", fix=fix)


_NUMBERS = {
    *(f"{kind}_{fault}" for kind in ("int", "float") for fault in ("parsing", "type", "from_float", "parsing_size")),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"),
}  # fmt: skip


def _allowed(parameter: Any) -> str:
    """The range of a numeric option, from its own bounds or from the run's setting with its name."""
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if low is None and high is None and parameter.name in OPTIONS:
        from rescoldo.training.config import allowed_words

        return allowed_words(parameter.name)
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    return number(whole=kind is int, ge=low, le=high)
