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
    file: Annotated[Path, typer.Argument(help="A comparison: the JSON written by compare --output.")],
    reviewer: Annotated[str, typer.Option(help="Name of the reviewer. (default the login name)")] = "",
    pair: Annotated[
        list[str] | None,
        typer.Option(help="A:B, two models; may be repeated. (default the winner and the baseline)"),
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Use the terminal instead of a page.")] = False,
    merge: Annotated[
        list[Path] | None, typer.Option(help="Add the votes of another reviewer's file; may be repeated.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Only print the result so far.")] = False,
    export_pairs: Annotated[
        Path | None, typer.Option(help="Write the preferences as prompt, chosen and rejected (JSON Lines).")
    ] = None,
    judged: Annotated[
        bool,
        typer.Option("--judged", help="For --export-pairs: include judges' preferences where no person has voted."),
    ] = False,
    role: Annotated[
        str | None, typer.Option(help="For --export-pairs: role with the prompt. (default the comparison's role)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of answers and inputs.")] = 42,
    lang: Annotated[str, typer.Option(help="Language of page, questions and result: en, es.")] = "en",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document: the page's address once it listens, or the result.")
    ] = False,
) -> None:
    """Choose between two models' answers without knowing which model wrote which: 1, 2, or 0 for equal.

    Each vote is saved at once, in FILE.votes.jsonl; the same command resumes. At the end the votes are added to the
    comparison and its reports; compare also does this when it writes the same file again.
    """
    check_number("--port", port, whole=True, ge=0, le=65535)
    from rescoldo.evaluation.document import read_document
    from rescoldo.preference.ballots import ballots, default_pairs
    from rescoldo.preference.votes import own_votes
    from rescoldo.review.wording import LANGUAGES

    if judged and export_pairs is None:
        raise RescoldoError("--judged requires --export-pairs", fix="add --export-pairs FILE")
    if lang not in LANGUAGES:
        raise RescoldoError(f"unknown language {lang!r}", where="--lang", fix=" or ".join(LANGUAGES))
    if terminal and json_ and not summary and export_pairs is None:
        raise RescoldoError("--terminal and --json exclude each other", fix="leave one of them out")
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
    except KeyboardInterrupt:  # the normal way to end it
        print(file=sys.stderr)
    _result(file, votes, put, False, quiet=json_, lang=lang)


def _pair(text: str) -> tuple[str, str]:
    """Parse A:B; raises RescoldoError if it has another form."""
    a, colon, b = text.partition(":")
    if not colon or not a or not b or a == b:
        raise RescoldoError(f"{text!r} is not A:B", where="--pair", fix="for example finetuned:baseline")
    return a, b


def login() -> str:
    """The login name; raises RescoldoError if the system does not know it."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise RescoldoError("the login name is unknown", fix="name the reviewer: --reviewer NAME") from None


def open_page(url: str, wanted: bool) -> None:
    """Open the page in a graphical browser: a terminal browser would take over this terminal."""
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
    """Add the votes to the comparison and its reports, and print the result."""
    from rescoldo.evaluation.document import read_document, write_document
    from rescoldo.preference.people import take_votes_in
    from rescoldo.review.summary import Words, summary_lines

    document = read_document(file)  # read again: the comparison may have been rewritten in the meantime
    before = document.get("people")
    take_votes_in(document, file)
    found = document.get("people")
    if found != before:
        try:
            write_document(document, file)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # the file may have been edited
            raise RescoldoError(
                f"the reports cannot be made of this comparison ({type(error).__name__}: {error}); the votes are kept",
                where=str(file), fix="write the comparison again with compare, which adds the votes",
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
