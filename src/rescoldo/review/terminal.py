"""Voting in the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rescoldo.preference.votes import MAX_NOTE
from rescoldo.review.session import Session, Shown
from rescoldo.review.wording import LANGUAGES
from rescoldo.words import printable

_WIDE = 110  # minimum columns for showing the answers side by side


def vote_in_terminal(session: Session, *, lang: str = "en", ask: Callable[[str], str] | None = None) -> None:
    """Ask for votes until all are given, the reviewer quits, or the input ends. Each is saved at once.

    Args:
        ask: shows a prompt and returns the line typed; raises EOFError at the end of the input.
    """
    words, ask = LANGUAGES[lang], ask or input
    number, note = session.next_open(), ""
    while number is not None:
        shown = session.show(number)
        _print(shown, session, words)
        note = shown.note
        while True:
            try:
                answer = ask(words["prompt"]).strip().lower()
                if answer == "n":
                    note = ask(words["note_prompt"])[:MAX_NOTE]
                    continue
            except EOFError:
                return
            if answer in ("1", "2", "0", "b", "u", "q"):
                break
            print(words["unknown"])
        if answer == "q":
            return
        if answer == "b":
            number = max(0, number - 1)
        elif answer == "u":
            undone = session.undo()
            print(words["nothing" if undone is None else "undone"])
            number = number if undone is None else undone
        else:
            before = session.cast(number, int(answer), note)
            if before is not None and before not in (shown.vote, int(answer)):
                print(words["replaced"])
            number = session.next_open(number)
    print(words["all_done"].format(total=len(session)))


def _print(shown: Shown, session: Session, words: dict[str, str]) -> None:
    from rich.columns import Columns
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    console = Console(highlight=False)
    progress = words["progress"].format(number=shown.number + 1, total=len(session), done=session.done)
    if shown.vote is not None:
        progress += " · " + words["voted"].format(vote=shown.vote)
    wide = console.width >= _WIDE
    width = (console.width - 1) // 2 if wide else console.width
    panels = [
        Panel(
            Text(printable(text).strip() or words["none"]), title=f"{words['answer']} {side}",
            width=width,
        )
        for side, text in ((1, shown.left), (2, shown.right))
    ]  # fmt: skip
    console.print()
    console.print(Text(progress, style="dim"))
    console.print(Panel(Text(printable(shown.concept)), title=words["input"]))
    console.print(Columns(panels, padding=(0, 1)) if wide else Group(*panels))
