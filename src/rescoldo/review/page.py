"""The page on which a reviewer chooses between two answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rescoldo.evaluation.page import environment, rendered
from rescoldo.preference.votes import MAX_NOTE
from rescoldo.review.server import RefusedError
from rescoldo.review.session import Session
from rescoldo.review.wording import LANGUAGES

_NOTICES = ("replaced", "undone", "nothing")


def ballot_page(
    session: Session, number: int | None, *, lang: str, nonce: str, notice: str = "", finished: bool = False
) -> str:
    """The HTML page of one ballot.

    Args:
        number: its index; None: the page shown when all ballots have a vote.
        nonce: for the page's own script and style, as its Content-Security-Policy names it.
        notice: a message for the reviewer, as a key of wording; "" for none.
        finished: the final page.
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


class BallotSite:
    """The ballots of one session as pages. See server.Site."""

    max_body = 32 << 10

    def __init__(self, session: Session, lang: str = "en") -> None:
        self.session, self.lang = session, lang

    def page(self, number: int | None, *, nonce: str, notice: str, finished: bool) -> str:
        """See Site."""
        known = notice if notice in _NOTICES else ""
        return ballot_page(self.session, number, lang=self.lang, nonce=nonce, notice=known, finished=finished)

    def place(self, wanted: str) -> int | None:
        """See Site."""
        return named_place(wanted, len(self.session), self.session.next_open)

    def act(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """See Site."""
        if what == "vote":
            return self._vote(body)
        if what == "undo":
            number = self.session.undo()
            return {"n": number, "notice": "undone"} if number is not None else {"notice": "nothing"}
        raise RefusedError(404, "there is no such page")

    def _vote(self, body: dict[str, Any]) -> dict[str, Any]:
        """Save a vote. Returns the query of the next page."""
        number, vote, note, seen = (body.get(name) for name in ("number", "vote", "note", "seen"))
        if type(number) is not int or type(vote) is not int or not isinstance(note, str):
            raise RefusedError(400, "expected number, vote (1, 2 or 0) and note")
        try:
            before = self.session.cast(number, vote, note)
        except (ValueError, IndexError):
            raise RefusedError(400, "there is no such vote, or the note is too long") from None
        following = self.session.next_open(number)
        found: dict[str, Any] = {"n": "done" if following is None else following}
        if before is not None and before not in (seen, vote):
            found["notice"] = "replaced"
        return found


def named_place(text: str, total: int, next_open: Callable[[], int | None]) -> int | None:
    """The index in a page's address; without one the first that is open."""
    if text == "done":
        return None
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < total:
        return int(text)
    return next_open()
