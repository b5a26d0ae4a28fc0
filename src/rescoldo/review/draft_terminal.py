"""Reviewing drafts in the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rescoldo.draft.decisions import ACCEPT, REJECT, NotSoundError
from rescoldo.review.draft_page import DraftSite, Shown
from rescoldo.review.draft_words import LANGUAGES
from rescoldo.words import printable

_RULE = "\n----- 8< -----\n"  # separates input and answer in the editor


def review_in_terminal(
    site: DraftSite, *, ask: Callable[[str], str] | None = None, edit: Callable[[str], str | None] | None = None
) -> None:
    """Ask for decisions until all are made, the reviewer quits, or the input ends. Each is saved at once.

    Args:
        ask: shows a prompt and returns the line typed; raises EOFError at the end of the input.
        edit: opens a text in an editor and returns the edited text, None if it was not saved.
    """
    words, ask, edit = LANGUAGES[site.lang], ask or input, edit or _in_editor
    reviewing = site.reviewing
    number = reviewing.next_open()
    while number is not None:
        shown = site.shown(number)
        _print(shown, site)
        try:
            answer = ask(words["prompt"]).strip().lower()
        except EOFError:
            return
        if answer == "q":
            return
        if answer == "b":
            number = max(0, number - 1)
        elif answer == "u":
            undone = reviewing.undo()
            print(words["nothing" if undone is None else "undone"])
            number = number if undone is None else undone
        elif answer in ("a", "r", "e"):
            texts = (shown.input, shown.answer)
            if answer == "e":
                made = edit(_RULE.join(texts))
                if made is None:
                    print(words["unchanged"])
                    continue
                before, rule, behind = made.partition(_RULE)
                texts = (before, behind) if rule else (shown.input, made)
            try:
                reviewing.decide(number, REJECT if answer == "r" else ACCEPT, *texts)
            except NotSoundError as error:
                print(words["refused"] + printable(str(error)))
                continue
            number = reviewing.next_open(number)
        else:
            print(words["unknown"])
    counts = {"accepted": reviewing.count(ACCEPT), "rejected": reviewing.count(REJECT)}
    print(words["all_done"].format(total=len(reviewing.drafts), **counts))


def _in_editor(text: str) -> str | None:
    import click

    return click.edit(text, extension=".yaml")


def _print(shown: Shown, site: DraftSite) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    words, console, reviewing = LANGUAGES[site.lang], Console(highlight=False), site.reviewing
    counts = {"accepted": reviewing.count(ACCEPT), "rejected": reviewing.count(REJECT)}
    progress = words["progress"].format(number=shown.number + 1, total=len(reviewing.drafts), **counts)
    console.print()
    console.print(Text(progress + (f" · {words[shown.decision]}" if shown.decision else ""), style="dim"))
    console.print(Panel(Text(printable(shown.input)), title=words["input"]))
    console.print(Panel(Text(printable(shown.answer).strip() or words["none"]), title=words["answer"]))
    for text in [*shown.checks, *shown.doubts]:
        console.print(Text(f"⚠️  {printable(text)}"))
    if shown.place:
        console.print(Text(f"{words['from']}: {printable(shown.place)}", style="dim"))
