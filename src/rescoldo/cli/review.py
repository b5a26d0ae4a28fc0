"""`rescoldo review`: people choose between two models' answers, blind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescoldo.allowed import check_number
from rescoldo.errors import RescoldoError
from rescoldo.files import quote
from rescoldo.invocation import program
from rescoldo.units import count

if TYPE_CHECKING:
    from rescoldo.preference.ballots import Ballots
    from rescoldo.preference.votes import VoteFile

EXAMPLE = "review artifacts/demo/comparison.json --reviewer ana"


def review(
    file: Annotated[Path, typer.Argument(help="A comparison: the JSON that compare --output wrote.")],
    reviewer: Annotated[str, typer.Option(help="Whose votes these are. (default the login name)")] = "",
    pair: Annotated[
        list[str] | None,
        typer.Option(help="A:B, two models; may be given more than once. (default the winner and the baseline)"),
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="In the terminal instead of on a page.")] = False,
    merge: Annotated[
        list[Path] | None, typer.Option(help="Take over the votes in this file, another reviewer's; more than once.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Print the result so far; nobody is asked.")] = False,
    export_pairs: Annotated[
        Path | None, typer.Option(help="Write what was preferred as prompt, chosen and rejected (JSON Lines).")
    ] = None,
    judged: Annotated[
        bool,
        typer.Option("--judged", help="For --export-pairs: with what judges prefer, where no person has voted."),
    ] = False,
    role: Annotated[
        str | None, typer.Option(help="For --export-pairs: whose prompt. (default the comparison's role)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of answers and inputs.")] = 42,
    lang: Annotated[str, typer.Option(help="What page, questions and result are written in: en, es.")] = "en",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document: the page's address once it listens, or the result.")
    ] = False,
) -> None:
    """Choose between two models' answers without knowing whose they are: 1, 2, or 0 for equal.

    Each vote is on the disk at once, in FILE.votes.jsonl; the same command resumes where it was. In the end the
    comparison and its reports take the votes in; so does compare when it writes the same file again.
    """
    check_number("--port", port, whole=True, ge=0, le=65535)
    from rescoldo.evaluation.document import read_document
    from rescoldo.preference.ballots import ballots, default_pairs
    from rescoldo.preference.votes import own_votes
    from rescoldo.review.wording import LANGUAGES

    if judged and export_pairs is None:
        raise RescoldoError("--judged says what --export-pairs writes", fix="add --export-pairs FILE")
    if lang not in LANGUAGES:
        raise RescoldoError(f"{lang!r} is no language of the page", where="--lang", fix=" or ".join(LANGUAGES))
    if terminal and json_ and not summary and export_pairs is None:
        raise RescoldoError("--terminal asks a person and --json answers a program", fix="leave one of them out")
    document = read_document(file)
    votes = own_votes(file)
    for other in merge or []:
        _merge(votes, other, quiet=json_)
    pairs = [_pair(text) for text in pair or []] or default_pairs(document, str(file))
    put = ballots(document, pairs, str(file))
    if export_pairs is not None:
        _export(document, votes, file, export_pairs, role, json_, judged=judged)
    if merge or summary or export_pairs is not None:
        _result(file, votes, put, json_ and export_pairs is None, quiet=json_, lang=lang)
        return
    from rescoldo.review.session import Session

    session = Session(put.items, votes, reviewer or login(), seed)
    if not len(session):
        raise RescoldoError(
            "there is nothing to choose: the answers are identical, or there are none", where=str(file),
            fix="another --pair A:B",
        )  # fmt: skip
    if not json_:
        print(f"{count(len(session), 'pair')} of answers, {session.done} with a vote of {session.reviewer!r}")
    try:
        if terminal:
            from rescoldo.review.terminal import vote_in_terminal

            vote_in_terminal(session, lang=lang)
        else:
            from rescoldo.review.page import BallotSite
            from rescoldo.review.server import ReviewServer

            server = ReviewServer(BallotSite(session, lang), port=port)
            if json_:
                facts = {"url": server.url, "votes": str(votes.path), "items": len(session), "done": session.done}
                print(json.dumps({**facts, "pid": os.getpid()}), flush=True)
            else:
                print(f"Open {server.url}\n(this machine only; Finish on the page or Ctrl-C here ends it)", flush=True)
                open_page(server.url, open_)
            server.run()
    except KeyboardInterrupt:  # the way to end it
        print(file=sys.stderr)
    _result(file, votes, put, False, quiet=json_, lang=lang)


def _pair(text: str) -> tuple[str, str]:
    """Raises RescoldoError where it is not A:B."""
    a, colon, b = text.partition(":")
    if not colon or not a or not b or a == b:
        raise RescoldoError(f"{text!r} is not A:B", where="--pair", fix="for example finetuned:baseline")
    return a, b


def login() -> str:
    """The login name. Raises RescoldoError where the system does not know it."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise RescoldoError("the login name is not known", fix="say whose votes these are: --reviewer NAME") from None


def open_page(url: str, wanted: bool) -> None:
    """In a browser with windows: one for terminals would take this one away."""
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if wanted and has_screen and sys.stdout.isatty():
        import webbrowser

        webbrowser.open(url)


def _merge(votes: VoteFile, other: Path, *, quiet: bool) -> None:
    from rescoldo.preference.votes import VoteFile

    if not other.is_file():
        raise RescoldoError("there is no such file", where=f"--merge {other}", fix="name a *.votes.jsonl")
    theirs = VoteFile(other)
    if not theirs.votes:
        raise RescoldoError("holds no votes", where=f"--merge {other}", fix="name a *.votes.jsonl")
    new = votes.merge(theirs.votes.values())
    if not quiet:
        print(f"{other}: {count(len(theirs.votes), 'vote')}, {new} of them new here")


def _export(
    document: dict[str, Any], votes: VoteFile, file: Path, output: Path, role: str | None, json_: bool, *, judged: bool
) -> None:
    from rescoldo.preference.export import preference_pairs, write_pairs
    from rescoldo.role import get_role

    if output.exists() and output.resolve() in (file.resolve(), votes.path.resolve()):
        raise RescoldoError("would be overwritten", where=f"--export-pairs {output}", fix="choose another name")
    facts = document.get("metadata")
    named = role or (str(facts.get("role") or "") if isinstance(facts, dict) else "") or None
    pairs = preference_pairs(document, votes.votes.values(), get_role(named), str(file), judged=judged)
    write_pairs(pairs, output)
    if json_:
        print(json.dumps({"output": str(output), "pairs": len(pairs)}))
    else:
        print(f"Written: {output}, {count(len(pairs), 'preference pair')}")


def _result(file: Path, votes: VoteFile, put: Ballots, json_: bool, *, quiet: bool, lang: str) -> None:
    """Take the votes into the comparison and its reports, and say what they say."""
    from rescoldo.evaluation.document import read_document, write_document
    from rescoldo.preference.people import take_votes_in
    from rescoldo.review.summary import Words, summary_lines

    document = read_document(file)  # as it is now: a comparison may have been made again meanwhile
    before = document.get("people")
    take_votes_in(document, file)
    found = document.get("people")
    if found != before:
        try:
            write_document(document, file)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # what was read is not ours alone
            raise RescoldoError(
                f"the reports cannot be made of this comparison ({type(error).__name__}: {error}); the votes are kept",
                where=str(file), fix="write the comparison again with compare: it takes the votes in",
            ) from None  # fmt: skip
    if json_:
        print(json.dumps(found or {}, ensure_ascii=False))
    if quiet:
        return
    words = Words(lang)
    for line in summary_lines(found, put, lang):
        print(line)
    if votes.damaged:
        print(words("damaged", lines=words.count(votes.damaged, "line"), file=str(votes.path)))
    print(words("votes", file=str(votes.path)))
    if not found:
        print(words("again", command=f"{program()} review {quote(file)}"))
