"""`rescoldo data draft` and `data review`: a model writes candidate examples, a person decides which are learned."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from rescoldo.allowed import check_number
from rescoldo.cli.eval import check_sampling, going_on
from rescoldo.errors import RescoldoError
from rescoldo.files import quote
from rescoldo.invocation import program
from rescoldo.units import count

DRAFT_EXAMPLE = "data draft --documents handbook.pdf --model openai:qwen3@http://127.0.0.1:8080/v1 -o drafts.jsonl"
REVIEW_EXAMPLE = "data review drafts.jsonl --output accepted.jsonl --reviewer ana"
ROLE_HELP = "The records' role: name, file or folder."


def draft_(
    output: Annotated[Path, typer.Option("--output", "-o", help="New file of drafts (JSON Lines).")],
    model: Annotated[str, typer.Option(help="The model: openai:MODEL@URL, ollama:NAME, a run or a base model.")],
    inputs: Annotated[
        list[Path] | None, typer.Option(help="Inputs to answer: a text with one per line, a table, JSON Lines.")
    ] = None,
    documents: Annotated[
        list[Path] | None, typer.Option(help="txt, md, docx or pdf: inputs are found in them, and answered from them.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column with the inputs. (default the role's input)")] = "",
    existing: Annotated[
        list[Path] | None,
        typer.Option(help="Existing datasets: their inputs are skipped, and drafts compared with them."),
    ] = None,
    role: Annotated[str, typer.Option(help=ROLE_HELP)] = "generic",
    per_piece: Annotated[int, typer.Option(help="Inputs from each piece of a document.")] = 3,
    words: Annotated[int, typer.Option(help="Approximate words in a piece of a document.")] = 300,
    limit: Annotated[int | None, typer.Option(help="Use only the first N inputs or pieces.")] = None,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Constrain answers to the role's schema (constrained decoding).")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. (default the role's)")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling; 1 is off. (default the role's)")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens of an answer. (default the role's)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 42,
    quantization: Annotated[str, typer.Option(help="Precision in our engine: auto, int8, nf4, bf16, fp32.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Have a model write candidate examples. They are learned only after a person has accepted them (data review).

    The same command resumes after an interruption: the model's answers are stored next to OUTPUT.
    """
    from dataclasses import replace

    from rescoldo.data import read_records
    from rescoldo.data.fix import refuse_existing
    from rescoldo.draft.drafting import MOST_INPUTS, Asker, draft
    from rescoldo.draft.sources import read_documents, read_inputs
    from rescoldo.evaluation.open import CONSTRAINED, Opener
    from rescoldo.models.cache import PredictionCache
    from rescoldo.role import get_role

    check_sampling(temperature, top_p, max_new_tokens)
    check_number("--per-piece", per_piece, whole=True, ge=1, le=MOST_INPUTS)
    check_number("--words", words, whole=True, ge=20, le=5000)
    check_number("--limit", limit, whole=True, ge=1)
    if not inputs and not documents:
        raise RescoldoError("there is nothing to draft from", fix="--inputs FILE, or --documents FILE")
    refuse_existing(output)
    the_role = get_role(role).ready()
    asked = [one for path in inputs or [] for one in read_inputs(path, the_role, column)]
    asked += read_documents(documents or [], words)
    asked = asked[:limit]
    known = [record for path in existing or [] for record in read_records(path, the_role)]
    opener = Opener(the_role, specs=[model], records=known, quantization=quantization)
    chat = opener.chat(model.removeprefix(CONSTRAINED))
    answerer = opener.chat(CONSTRAINED + model) if constrained and not model.startswith(CONSTRAINED) else chat
    given = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    sampling = replace(the_role.sampling, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    kept = output.with_name(output.name + ".partial.jsonl")
    cache = PredictionCache(kept)
    with going_on(str(kept)), _bars() as progress:
        asker = Asker(chat, cache, progress)
        made = draft(asked, the_role, asker, answerer, sampling, spec=model, existing=known, per_piece=per_piece)
    _write(made.records, output)
    cache.remove()
    wrong = sum(bool(one["provenance"]["checks"]) for one in made.records)
    odd = sum(bool(one["provenance"].get("doubts")) for one in made.records)
    if json_:
        facts = {"drafts": len(made.records), "with_faults": wrong, "doubtful": odd, "repeated": made.repeated}
        print(json.dumps({"output": str(output), **facts, "failed": made.failed, "calibrated": made.calibrated}))
        return
    for text in made.failed[:20]:
        print(f"⚠️  {text}")
    print(f"{output}: {count(len(made.records), 'draft')}, {wrong} with faults, {odd} unlike the existing answers")
    if not made.calibrated:
        print("  (fewer than 10 existing answers (--existing): too few to compare with)")
    if made.repeated:
        print(f"  {count(made.repeated, 'input')} left out: asked already, or nearly the same")
    print(f"→ {program()} data review {quote(output)} --role {quote(role)}")


def review_(
    file: Annotated[Path, typer.Argument(help="Drafts written by data draft.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Dataset of accepted drafts. (default FILE_accepted.jsonl)")
    ] = None,
    role: Annotated[str, typer.Option(help=ROLE_HELP)] = "generic",
    reviewer: Annotated[str, typer.Option(help="Name of the reviewer. (default the login name)")] = "",
    terminal: Annotated[bool, typer.Option("--terminal", help="Use the terminal instead of a page.")] = False,
    lang: Annotated[str, typer.Option(help="Language of the page and the questions: en, es.")] = "en",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document: the page's address once it listens.")
    ] = False,
) -> None:
    """Accept, edit or reject drafts, on a local page or in the terminal.

    Each decision is saved at once, in FILE.decisions.jsonl, and the accepted examples in OUTPUT; the same command
    resumes.
    """
    from rescoldo.cli.review import login, open_page
    from rescoldo.draft.decisions import ACCEPT, REJECT, Reviewing
    from rescoldo.review.draft_page import DraftSite
    from rescoldo.review.draft_words import LANGUAGES
    from rescoldo.role import get_role

    check_number("--port", port, whole=True, ge=0, le=65535)
    if lang not in LANGUAGES:
        raise RescoldoError(f"unknown language {lang!r}", where="--lang", fix=" or ".join(LANGUAGES))
    if terminal and json_:
        raise RescoldoError("--terminal and --json exclude each other", fix="leave one of them out")
    output = output or file.with_name(f"{file.stem}_accepted.jsonl")
    if output.resolve() == file.resolve():
        raise RescoldoError("the drafts would be overwritten", where=f"--output {output}", fix="choose another name")
    reviewing = Reviewing(file, get_role(role).ready(), output, reviewer or login())
    site = DraftSite(reviewing, lang)
    if not json_:
        print(f"{count(len(reviewing.drafts), 'draft')}, {reviewing.done} with a decision")
    try:
        if terminal:
            from rescoldo.review.draft_terminal import review_in_terminal

            review_in_terminal(site)
        else:
            from rescoldo.review.server import ReviewServer

            server = ReviewServer(site, port=port)
            if json_:
                facts: dict[str, Any] = {"url": server.url, "output": str(output), "items": len(reviewing.drafts)}
                print(json.dumps({**facts, "done": reviewing.done, "pid": os.getpid()}), flush=True)
            else:
                print(f"Open {server.url}\n(this machine only; Finish on the page or Ctrl-C here ends it)", flush=True)
                open_page(server.url, open_)
            server.run()
    except KeyboardInterrupt:  # the normal way to end it
        print(file=sys.stderr)
    if json_:
        return
    accepted, rejected = reviewing.count(ACCEPT), reviewing.count(REJECT)
    left = len(reviewing.drafts) - accepted - rejected
    print(f"{accepted} accepted, {rejected} rejected, {left} open")
    if accepted:
        print(f"Written: {output}")
    if left:
        print(f"To continue: {program()} data review {quote(file)} --role {quote(role)}")


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error for each kind of request to the model."""
    from rich.console import Console

    from rescoldo.training.progress import Bar, Reporter

    reporter = Reporter(Console(stderr=True, highlight=False))
    shown: dict[str, Bar] = {}
    with ExitStack() as stack:

        def progress(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.pop_all().close()
                shown[what] = stack.enter_context(reporter.bar(f"{what}:", total, done))
            shown[what].advance(done - shown[what].done, "")

        yield progress


def _write(records: list[dict[str, Any]], output: Path) -> None:
    from rescoldo.data.fix import unwritable, write_bytes

    if not records:
        raise RescoldoError("all inputs exist already: there is nothing to draft", fix="give other inputs")
    try:
        write_bytes(output, b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in records))
    except OSError as error:
        raise unwritable(output, error) from None
