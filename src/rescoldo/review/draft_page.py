"""The pages on which a person accepts, edits or rejects a model's drafts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.draft.decisions import ACCEPT, REJECT, NotSoundError, Reviewing
from rescoldo.evaluation.page import environment, rendered
from rescoldo.review.draft_words import LANGUAGES
from rescoldo.review.page import named_place
from rescoldo.review.server import RefusedError

_NOTICES = ("undone", "nothing")
_DECIDED = {ACCEPT: "accepted", REJECT: "rejected"}


@dataclass(frozen=True)
class Shown:
    """A draft as a page shows it; `decision` is "accepted", "rejected" or ""."""

    number: int
    input: str
    answer: str
    decision: str
    checks: list[str]
    doubts: list[str]
    extract: str
    place: str


class DraftSite:
    """The drafts of a file as pages. See server.Site."""

    max_body = 4 << 20

    def __init__(self, reviewing: Reviewing, lang: str = "en") -> None:
        self.reviewing, self.lang = reviewing, lang

    def page(self, number: int | None, *, nonce: str, notice: str, finished: bool) -> str:
        """See Site."""
        words = LANGUAGES[self.lang]
        shown = self.shown(number) if number is not None and not finished else None
        return (
            environment(Path(__file__).parent)
            .get_template("drafts.html.j2")
            .render(
                lang=self.lang,
                words=words,
                nonce=nonce,
                notice=words[notice] if notice in _NOTICES else "",
                finished=finished,
                shown=shown,
                document=rendered(shown.answer) if shown and self.reviewing.role.schema else None,
                total=len(self.reviewing.drafts),
                accepted=self.reviewing.count(ACCEPT),
                rejected=self.reviewing.count(REJECT),
            )
        )

    def shown(self, number: int) -> Shown:
        """The draft with this index."""
        draft, decision = self.reviewing.drafts[number], self.reviewing.decision(number)
        input_, answer = self.reviewing.shown(number)
        decided = _DECIDED[str(decision.decision)] if decision else ""
        return Shown(number, input_, answer, decided, draft.checks, draft.doubts, draft.extract, draft.place)

    def place(self, wanted: str) -> int | None:
        """See Site."""
        return named_place(wanted, len(self.reviewing.drafts), self.reviewing.next_open)

    def act(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """See Site."""
        if what == "undo":
            number = self.reviewing.undo()
            return {"n": number, "notice": "undone"} if number is not None else {"notice": "nothing"}
        if what != "decide":
            raise RefusedError(404, "there is no such page")
        number, decision, input_, answer = (body.get(name) for name in ("number", "decision", "input", "answer"))
        texts = isinstance(input_, str) and isinstance(answer, str)
        if type(number) is not int or decision not in _DECIDED or not texts:
            raise RefusedError(400, "expected number, decision (accept or reject), input and answer")
        try:
            self.reviewing.decide(number, decision, str(input_), str(answer))
        except NotSoundError as error:
            raise RefusedError(422, str(error)) from None
        except IndexError:
            raise RefusedError(400, "there is no such draft") from None
        following = self.reviewing.next_open(number)
        return {"n": "done" if following is None else following}
