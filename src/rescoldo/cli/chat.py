"""`rescoldo chat`: try a model in the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescoldo.allowed import check_number
from rescoldo.errors import RescoldoError
from rescoldo.units import count
from rescoldo.words import printable

if TYPE_CHECKING:
    from rich.console import Console

    from rescoldo.constrain import Grammar
    from rescoldo.engine.types import Sampling
    from rescoldo.models.loaded import Loaded
    from rescoldo.serve.talk import Reply

EXAMPLE = 'chat artifacts/demo/run --concept "A tool library" --compare'
_HELP = (
    "/concept TEXT asks through the role's prompt, /reset starts a new conversation, /exit (or Ctrl-D) quits; "
    "Ctrl-C stops an answer"
)


def chat(
    model: Annotated[str, typer.Argument(help="Run directory, or a base model (directory, GGUF, ollama:, sample:).")],
    concept: Annotated[
        str | None, typer.Option(help="Ask this with the role's prompt, print the answer, exit.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also show the base model's answer.")] = False,
    base: Annotated[bool, typer.Option("--base", help="Use the run's base model without its adapter.")] = False,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Constrain answers to the role's schema (constrained decoding).")
    ] = False,
    system: Annotated[str | None, typer.Option(help="A system message before the conversation.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=100, help="0 is greedy. (default the role's)")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling; 1 is off. (default the role's)")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens of an answer. (default the role's)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 42,
    quantization: Annotated[
        str, typer.Option(help="Precision of the base model: auto (the run's), int8, nf4 (or bnb4), bf16, fp32.")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="With --concept: one JSON document, nothing else.")] = False,
) -> None:
    """Talk to a model: type a message, and the answer is printed as it is generated.

    A run was trained on its role's prompt: ask with --concept, or /concept in the conversation, to see what it learned.
    """
    from dataclasses import replace

    from rich.console import Console

    from rescoldo.base.chat_templates import plain_note
    from rescoldo.evaluation.evaluation import role_for
    from rescoldo.models.loaded import is_run, load_for_inference
    from rescoldo.role.grammar import role_grammar
    from rescoldo.training.progress import Reporter

    check_number("--top-p", top_p, gt=0, le=1)
    if json_ and concept is None:
        raise RescoldoError(
            "needs a single question: a conversation is not one JSON document", where="--json", fix="add --concept TEXT"
        )
    if concept is not None and not concept.strip():
        raise RescoldoError("is empty", where="--concept", fix='--concept "A tool library"')
    if (compare or base) and not is_run(model):
        raise RescoldoError("has no adapter: it is a base model already", where=model, fix="name a run's directory")
    if compare and base:
        raise RescoldoError("shows the base model already", where="--compare", fix="leave out --base")
    console = Console(highlight=False, stderr=json_)
    role = role_for(model, None)
    grammar = role_grammar(role) if constrained else None
    reporter = Reporter(Console(highlight=False, stderr=True))
    with reporter.bar("Loading:", 100) as bar:
        loaded = load_for_inference(
            model, quantization, on_progress=lambda share: bar.advance(int(100 * share) - bar.done, "")
        )
    if note := plain_note(loaded.tokenizer):
        reporter.say(note)
    given: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    sampling = replace(role.sampling, **{name: value for name, value in given.items() if value is not None})
    models = (
        {"base": False, "finetuned": True}
        if compare
        else {"base": False}
        if base or not loaded.run
        else {"finetuned": True}
    )
    before = [{"role": "system", "content": system}] if system else []
    if concept is None:
        _talk(console, loaded, grammar, models, before, sampling, lambda text: role.messages({role.input: text}))
        return
    replies = _answer(
        console, loaded, grammar, models, before + role.messages({role.input: concept}), sampling, quiet=json_
    )
    if json_:
        answers = {name: asdict(one) for name, one in replies.items()}
        print(json.dumps({"concept": concept, "model": model, "answers": answers}, ensure_ascii=False))


def _talk(
    console: Console,
    loaded: Loaded,
    grammar: Grammar | None,
    models: dict[str, bool],
    before: list[dict[str, str]],
    sampling: Sampling,
    ask: Any,
) -> None:
    """Read lines from standard input and print answers until it ends. The last model's answers go into the history."""
    if sys.stdin.isatty():
        console.print(_HELP, style="dim")
    messages = list(before)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print()
            return
        command, _, text = line.partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command == "/reset":
            messages = list(before)
        elif command == "/concept" and text.strip():
            _safely(console, lambda text=text: _answer(console, loaded, grammar, models, before + ask(text), sampling))
        elif line.startswith("/"):
            console.print(_HELP, style="dim")
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            replies = _safely(console, lambda asked=asked: _answer(console, loaded, grammar, models, asked, sampling))
            if replies:
                messages = [*asked, {"role": "assistant", "content": list(replies.values())[-1].text}]


def _safely(console: Console, answer: Any) -> dict[str, Reply] | None:
    """Answer; an error is printed and does not end the conversation."""
    try:
        replies: dict[str, Reply] = answer()
    except RescoldoError as error:
        console.print(f"error: {error}", markup=False)
        return None
    return replies


def _answer(
    console: Console,
    loaded: Loaded,
    grammar: Grammar | None,
    models: dict[str, bool],
    messages: list[dict[str, str]],
    sampling: Sampling,
    *,
    quiet: bool = False,
) -> dict[str, Reply]:
    """Answers by model, printed as they come: one after the other, two in columns on a wide terminal."""
    from rescoldo.serve.talk import reply

    if quiet:
        return {name: reply(loaded, messages, sampling, grammar=grammar, adapter=on) for name, on in models.items()}
    if len(models) > 1 and console.is_terminal and console.width >= 80:
        return _side_by_side(console, loaded, grammar, models, messages, sampling)
    replies = {}
    for name, adapter in models.items():
        if len(models) > 1:
            console.print(f"--- {name} ---", style="bold")

        def show(piece: str) -> None:
            console.file.write(printable(piece))
            console.file.flush()

        replies[name] = reply(loaded, messages, sampling, grammar=grammar, adapter=adapter, on_piece=show)
        console.print()
        console.print(_figures(replies[name]), style="dim")
    return replies


def _side_by_side(
    console: Console,
    loaded: Loaded,
    grammar: Grammar | None,
    models: dict[str, bool],
    messages: list[dict[str, str]],
    sampling: Sampling,
) -> dict[str, Reply]:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from rescoldo.serve.talk import reply

    texts = dict.fromkeys(models, "")
    figures = dict.fromkeys(models, "")

    def table() -> Table:
        grid = Table(expand=True)
        for name in models:
            grid.add_column(name, ratio=1, overflow="fold", footer=figures[name])
        grid.add_row(*(Text(text) for text in texts.values()))
        grid.show_footer = True
        return grid

    replies = {}
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as screen:
        for name, adapter in models.items():

            def show(piece: str, name: str = name) -> None:
                texts[name] += printable(piece)
                if "\n" in piece or len(texts[name]) % 8 == 0:
                    screen.update(table(), refresh=True)

            replies[name] = reply(loaded, messages, sampling, grammar=grammar, adapter=adapter, on_piece=show)
            figures[name] = _figures(replies[name])
            screen.update(table(), refresh=True)
    return replies


def _figures(one: Reply) -> str:
    end = "" if one.ended else ", cut off"
    return f"{count(one.tokens, 'token')}, {one.tokens / max(one.seconds, 1e-9):.0f} tokens/s{end}"
