"""The page on which a reviewer chooses."""

from __future__ import annotations

from pathlib import Path

from rescoldo.evaluation.page import environment, rendered
from rescoldo.preference.votes import MAX_NOTE
from rescoldo.review.session import Session
from rescoldo.review.wording import LANGUAGES


def ballot_page(
    session: Session, number: int | None, *, lang: str, nonce: str, notice: str = "", finished: bool = False
) -> str:
    """The page of one ballot.

    Args:
        number: its place; None: the page for when all have a vote.
        nonce: of the page's own script and style, as its Content-Security-Policy names it.
        notice: what to tell the reviewer, a key of wording; "" for nothing.
        finished: the page that says good-bye.
    """
    shown = session.show(number) if number is not None and not finished else None
    words = LANGUAGES[lang]
    return (
        environment(Path(__file__).parent)
        .get_template("ballot.html.j2")
        .render(
            lang=lang,
            words=words,
            nonce=nonce,
            notice=words[notice] if notice else "",
            finished=finished,
            shown=shown,
            left=rendered(shown.left) if shown else None,
            right=rendered(shown.right) if shown else None,
            total=len(session),
            done=session.done,
            max_note=MAX_NOTE,
        )
    )
